"""Files through the published client, unmodified. What is asserted is what a command inside, or another call, sees."""

import hashlib
import io
import os
import threading
import uuid

import httpx
import pytest
from daytona import DaytonaAuthorizationError, DaytonaConflictError, DaytonaError, DaytonaNotFoundError
from daytona._sync.filesystem import FileSystem
from daytona._sync.process import Process
from daytona.common.filesystem import FileDownloadRequest, FileUpload
from daytona_toolbox_api_client import ApiClient, ApiException, Configuration, FileSystemApi, ProcessApi

URL = os.environ["TOOLBOX_URL"]
TOKEN = os.environ.get("TOOLBOX_TOKEN")
HEADERS = {"Authorization": f"Bearer {TOKEN}"} if TOKEN else {}


@pytest.fixture(scope="module")
def api():
    client = ApiClient(Configuration(host=URL))
    client.default_headers.update({"X-Daytona-SDK-Version": "0.226.1", "X-Daytona-Source": "sdk-python", **HEADERS})
    return client


@pytest.fixture(scope="module")
def http():
    with httpx.Client(timeout=None) as client:
        yield client


@pytest.fixture
def fs(api, http):
    return FileSystem(FileSystemApi(api), http)


@pytest.fixture
def raw(api):
    return FileSystemApi(api)


@pytest.fixture
def sh(api, http):
    process = Process("python", ProcessApi(api), http)

    def run(command):
        answer = process.exec(command)
        assert answer.exit_code == 0, answer.result
        return answer.result

    return run


@pytest.fixture
def folder(sh):
    path = f"/tmp/files-{uuid.uuid4()}"
    sh(f"mkdir {path}")
    yield path
    sh(f"rm -rf {path}")


def digest(content):
    return hashlib.sha256(content).hexdigest()


CONTENT = os.urandom(5_000_001)
NAMES = ["plain.txt", "größe 你好.bin", "a'b \"c\" %41 \\d.txt", "-rf", "emoji 🎉"]


@pytest.mark.os
def test_one_file_in_and_out(fs, sh, folder, tmp_path):
    for name in NAMES:
        fs.upload_file(name.encode(), f"{folder}/new/{name}")
        assert fs.download_file(f"{folder}/new/{name}") == name.encode()
    assert int(sh(f"ls {folder}/new | wc -l")) == len(NAMES)
    local = tmp_path / "local"
    local.write_bytes(CONTENT)
    fs.upload_file(str(local), f"{folder}/large")
    assert sh(f"sha256sum {folder}/large").split()[0] == digest(CONTENT)
    fs.download_file(f"{folder}/large", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == CONTENT
    assert fs.download_file(f"{folder}/large") == CONTENT
    fs.upload_file(b"", f"{folder}/large")
    assert sh(f"stat -c '%s %a' {folder}/large") == "0 644\n"
    assert fs.download_file(f"{folder}/large") == b""


@pytest.mark.os
def test_many_files_at_once(fs, sh, folder):
    files = [FileUpload(f"content of {name}".encode(), f"{folder}/many/{name}") for name in NAMES]
    fs.upload_files([*files, FileUpload(CONTENT, f"{folder}/many/large")])
    assert sh(f"sha256sum {folder}/many/large").split()[0] == digest(CONTENT)
    paths = [f"{folder}/many/{NAMES[1]}", f"{folder}/nosuch", f"{folder}/many", f"{folder}/many/large"]
    results = fs.download_files([FileDownloadRequest(source=path) for path in paths])
    assert [result.source for result in results] == paths
    assert results[0].result == f"content of {NAMES[1]}".encode() and results[3].result == CONTENT
    assert "not found" in results[1].error and results[2].error
    assert results[1].error_details.status_code == 404 and results[1].error_details.error_code == "FILE_NOT_FOUND"
    with pytest.raises(DaytonaNotFoundError):
        fs.download_file(f"{folder}/nosuch")


def test_what_fails_of_many_does_not_stop_the_others(fs, sh, folder):
    sh(f"mkdir {folder}/taken")
    first, last = FileUpload(b"first", f"{folder}/first"), FileUpload(b"last", f"{folder}/last")
    with pytest.raises(DaytonaError):
        fs.upload_files([first, FileUpload(CONTENT, f"{folder}/taken"), last])
    assert sh(f"cat {folder}/first {folder}/last") == "firstlast"


@pytest.mark.os
def test_streams(fs, sh, folder):
    seen = []
    fs.upload_file_stream(io.BytesIO(CONTENT), f"{folder}/streamed", on_progress=lambda p: seen.append(p.bytes_sent))
    assert sh(f"sha256sum {folder}/streamed").split()[0] == digest(CONTENT)
    assert seen[-1] >= len(CONTENT)
    assert b"".join(fs.download_file_stream(f"{folder}/streamed")) == CONTENT
    with pytest.raises(DaytonaNotFoundError):
        list(fs.download_file_stream(f"{folder}/nosuch"))
    cancelled = threading.Event()
    pieces = fs.download_file_stream(f"{folder}/streamed", cancel_event=cancelled)
    next(pieces)
    cancelled.set()
    with pytest.raises(DaytonaError):
        list(pieces)
    assert fs.download_file(f"{folder}/streamed") == CONTENT


@pytest.mark.os
def test_folders_and_listings(fs, sh, folder):
    fs.create_folder(f"{folder}/a/b", "700")
    assert sh(f"stat -c %a {folder}/a/b") == "700\n"
    sh(f"cd {folder}; echo text > a/file; chmod 640 a/file; ln -s nowhere a/dangling; ln -s b a/link; mkfifo a/pipe")
    info = fs.get_file_info(f"{folder}/a/file")
    assert (info.name, info.size, info.mode, info.permissions) == ("file", 5, "-rw-r-----", "0640")
    assert (info.is_dir, info.owner) == (False, sh("id -u").strip())
    assert info.mod_time.endswith("Z")
    entries = {entry.name: entry for entry in fs.list_files(f"{folder}/a")}
    assert sorted(entries) == ["b", "dangling", "file", "link", "pipe"]
    assert entries["b"].is_dir and entries["link"].is_dir and entries["dangling"].mode.startswith("L")
    deep = [entry.path for entry in fs.list_files(folder, depth=3)]
    assert f"{folder}/a/b" in deep and f"{folder}/a/file" in deep
    for wrong, error in [(f"{folder}/nosuch", DaytonaNotFoundError), (f"{folder}/a/file", DaytonaError)]:
        with pytest.raises(error):
            fs.list_files(wrong)
    with pytest.raises(DaytonaError):
        fs.create_folder(f"{folder}/c", "rwx")
    with pytest.raises(DaytonaError):
        fs.delete_file(f"{folder}/a")
    fs.delete_file(f"{folder}/a", recursive=True)
    assert sh(f"ls -A {folder}") == ""
    with pytest.raises(DaytonaNotFoundError):
        fs.delete_file(f"{folder}/a")


@pytest.mark.os
def test_contents_and_names_are_found_and_replaced(fs, sh, folder):
    sh(f"cd {folder}; mkdir sub; printf 'one\\ntwo needle\\n' > a.txt; printf 'needle.*\\n' > sub/b.txt; chmod 750 a.txt")
    sh(f"cd {folder}; printf '\\0needle' > sub/binary; head -c 70000000 /dev/zero | tr '\\0' x > sub/large; echo needle >> sub/large")
    found = sorted((match.file, match.line) for match in fs.find_files(folder, "needle"))
    assert found == [(f"{folder}/a.txt", 2), (f"{folder}/sub/b.txt", 1), (f"{folder}/sub/large", 1)]
    assert fs.find_files(folder, "no such text") == []
    assert sorted(fs.search_files(folder, "*.txt").files) == [f"{folder}/a.txt", f"{folder}/sub/b.txt"]
    assert fs.search_files(folder, "s?b").files == [f"{folder}/sub"]
    assert fs.search_files(folder, "none*").files == []
    results = fs.replace_in_files([f"{folder}/a.txt", f"{folder}/nosuch"], "needle", "pin")
    assert [(result.success, bool(result.error)) for result in results] == [(True, False), (False, True)]
    assert sh(f"cat {folder}/a.txt; stat -c %a {folder}/a.txt") == "one\ntwo pin\n750\n"
    fs.replace_in_files([f"{folder}/sub/b.txt"], ".*", "$&")
    assert sh(f"cat {folder}/sub/b.txt") == "needle$&\n"


@pytest.mark.os
def test_moves(fs, sh, folder):
    sh(f"cd {folder}; mkdir -p a/b; echo x > a/b/file; echo y > taken")
    fs.move_files(f"{folder}/a", f"{folder}/moved")
    assert sh(f"cat {folder}/moved/b/file") == "x\n"
    for destination, error in [("taken", DaytonaConflictError), ("nosuch/x", DaytonaNotFoundError)]:
        with pytest.raises(error):
            fs.move_files(f"{folder}/moved", f"{folder}/{destination}")
    with pytest.raises(DaytonaNotFoundError):
        fs.move_files(f"{folder}/a", f"{folder}/b")
    if sh(f"[ -w /dev/shm ] && [ $(stat -c %d /dev/shm) != $(stat -c %d {folder}) ] && echo yes || echo no") == "yes\n":
        there = f"/dev/shm/{uuid.uuid4()}"
        fs.move_files(f"{folder}/moved", there)
        assert sh(f"cat {there}/b/file; ls {folder}; rm -r {there}") == "x\ntaken\n"


@pytest.mark.os
def test_permissions(fs, sh, folder):
    sh(f"echo x > {folder}/file")
    fs.set_file_permissions(f"{folder}/file", mode="604")
    assert sh(f"stat -c %a {folder}/file") == "604\n"
    user, group = sh("id -un").strip(), sh("id -g").strip()
    fs.set_file_permissions(f"{folder}/file", owner=user, group=group)
    for wrong in [{"owner": "no-such-user"}, {"group": "no-such-group"}, {"mode": "abc"}]:
        with pytest.raises(DaytonaError):
            fs.set_file_permissions(f"{folder}/file", **wrong)
    with pytest.raises(DaytonaNotFoundError):
        fs.set_file_permissions(f"{folder}/nosuch", mode="600")
    if user != "root":
        with pytest.raises(DaytonaAuthorizationError):
            fs.set_file_permissions("/etc/passwd", mode="600")


@pytest.mark.os
def test_single_uploads_and_downloads(raw, http, sh, folder):
    """What signed addresses lead to."""
    place = {"path": f"{folder}/deep/größe.bin"}
    answer = http.post(f"{URL}/files/upload-v2", params=place, content=CONTENT, headers=HEADERS)
    assert (answer.status_code, answer.json()) == (
        200, {"name": "größe.bin", "path": f"{folder}/deep/größe.bin", "type": "file"})
    assert sh(f"sha256sum {folder}/deep/*").split()[0] == digest(CONTENT)
    answer = http.post(f"{URL}/files/upload-v2", params=place, files={"file": ("x", b"form")}, headers=HEADERS)
    assert answer.status_code == 200 and sh(f"cat {folder}/deep/*") == "form"
    answer = http.post(f"{URL}/files/upload", params=place, files={"file": ("x", b"older")}, headers=HEADERS)
    assert answer.status_code == 200 and sh(f"cat {folder}/deep/*") == "older"
    assert bytes(raw.download_file(path=f"{folder}/deep/größe.bin")) == b"older"
    head = http.head(f"{URL}/files/download", params=place, headers=HEADERS)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "5", b"")
    assert head.headers["content-disposition"].endswith("filename*=utf-8''gr%C3%B6%C3%9Fe.bin")
    part = http.get(f"{URL}/files/download", params=place, headers={**HEADERS, "Range": "bytes=1-2"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"ld", "bytes 1-2/5")
    beyond = http.get(f"{URL}/files/download", params=place, headers={**HEADERS, "Range": "bytes=5-"})
    assert (beyond.status_code, beyond.json()["statusCode"]) == (416, 416)
    with pytest.raises(ApiException) as refused:
        raw.download_file(path=folder)
    assert refused.value.status == 400


@pytest.mark.os
def test_an_upload_that_breaks_off_leaves_nothing(http, sh, folder):
    def broken():
        yield CONTENT
        raise ConnectionError("as if the line were cut")

    with pytest.raises(ConnectionError):
        http.post(f"{URL}/files/upload-v2", params={"path": f"{folder}/cut"}, content=broken(), headers=HEADERS)
    assert sh(f"ls -A {folder}") == ""


@pytest.mark.os
def test_changes_are_streamed(http, fs, folder):
    with http.stream("GET", f"{URL}/files/watch", params={"path": folder, "recursive": "true"}, headers=HEADERS) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: ready"
        fs.upload_file(b"x", f"{folder}/new/file")
        wanted = f'"path":"{folder}/new/file"'
        assert any(wanted in line and '"created"' in line for line in lines)
