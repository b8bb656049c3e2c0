"""Git through the published toolbox client, each call tested by what it does. The remote is served in the sandbox, by
git_server.py beside this file."""

import os
import pathlib
import time
import uuid

import pytest
from daytona import DaytonaError
from daytona._sync.git import Git
from daytona.common.errors import (
    DaytonaGitAuthFailedError,
    DaytonaGitBranchExistsError,
    DaytonaGitBranchNotFoundError,
    DaytonaGitDirtyWorktreeError,
    DaytonaGitPushRejectedError,
    DaytonaGitRepoNotFoundError,
    DaytonaGitTransportFailedError,
)
from daytona_toolbox_api_client import (
    ApiClient,
    Configuration,
    CreateSessionRequest,
    ExecuteRequest,
    FileSystemApi,
    GitApi,
    ProcessApi,
    SessionExecuteRequest,
)

URL = os.environ["TOOLBOX_URL"]
HEADERS = {"X-Daytona-SDK-Version": "0.226.1", "X-Daytona-Source": "python-sdk"}
if token := os.environ.get("TOOLBOX_TOKEN"):
    HEADERS["Authorization"] = f"Bearer {token}"
USER, PASSWORD = "alice", "s3cr3t/of:alice"
PATIENCE_SECONDS = 60


def toolbox():
    client = ApiClient(Configuration(host=URL))
    client.default_headers.update(HEADERS)
    return client


class Scene:
    """A folder of its own in the sandbox, with a served repository that has one commit."""

    def __init__(self):
        client = toolbox()
        self.git = Git(GitApi(client))
        self.api = GitApi(client)
        self.process = ProcessApi(client)
        self.folder = f"/tmp/git-{uuid.uuid4().hex[:8]}"
        self.session = f"git-server-{uuid.uuid4().hex[:8]}"

    def run(self, command):
        """Runs a shell command in the folder and gives what it prints."""
        answer = self.process.execute_command(ExecuteRequest(command=command, cwd=self.folder))
        assert answer.exit_code == 0, f"{command}: {answer.exit_code}: {answer.result}"
        return answer.result.strip()

    def write(self, path, text):
        self.run(f"mkdir -p \"$(dirname '{path}')\" && printf '%s' '{text}' > '{path}'")

    def __enter__(self):
        self.process.execute_command(ExecuteRequest(command=f"mkdir -p {self.folder}/served"))
        self.run(
            "git init -q --bare -b main served/one.git && git -C served/one.git config http.receivepack true && "
            "git init -q -b main seed && cd seed && printf one > a.txt && mkdir dir && printf two > dir/b.txt && git add . && "
            "git -c user.name=Seed -c user.email=seed@example.com commit -q -m 'first commit' && "
            "git push -q ../served/one.git main && git checkout -q -b side && printf side > side.txt && git add . && "
            "git -c user.name=Seed -c user.email=seed@example.com commit -q -m 'on the side' && "
            "git push -q ../served/one.git side && git checkout -q main && "
            "git init -q --bare ../served/empty.git && git -C ../served/empty.git config http.receivepack true"
        )
        source = pathlib.Path(__file__).with_name("git_server.py").read_text()
        FileSystemApi(toolbox()).upload_file(path=f"{self.folder}/git_server.py", file=source.encode())
        self.process.create_session(CreateSessionRequest(session_id=self.session))
        command = f"exec python3 {self.folder}/git_server.py {self.folder}/served {USER} '{PASSWORD}' > {self.folder}/requests"
        self.process.session_execute_command(
            self.session, SessionExecuteRequest(command=command, run_async=True)
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (port := self.run("head -n1 requests 2>/dev/null || true")):
            assert time.monotonic() < deadline, "the git server does not start"
        self.remote = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_):
        self.process.delete_session(self.session)
        self.process.execute_command(ExecuteRequest(command=f"rm -rf {self.folder}"))


def refused(error, action):
    """Fails unless the action is refused in this way; gives the refusal."""
    try:
        action()
    except error as refusal:
        assert PASSWORD not in str(refusal), refusal
        return refusal
    raise AssertionError(f"not refused with {error}")


def cloning(scene):
    git, folder = scene.git, scene.folder
    git.clone(f"{scene.remote}/open/one.git", f"{folder}/plain")
    assert scene.run("cat plain/a.txt plain/dir/b.txt") == "onetwo"
    assert scene.run("git -C plain branch --show-current") == "main"
    refused(DaytonaGitAuthFailedError, lambda: git.clone(f"{scene.remote}/private/one.git", f"{folder}/no"))
    wrong = refused(
        DaytonaGitAuthFailedError,
        lambda: git.clone(f"{scene.remote}/private/one.git", f"{folder}/no", username=USER, password="wrong-one"),
    )
    assert "wrong-one" not in str(wrong)
    assert scene.run("test -e no || echo gone") == "gone"
    git.clone(f"{scene.remote}/private/one.git", f"{folder}/work", username=USER, password=PASSWORD)
    assert scene.run("git -C work log --format=%s") == "first commit"
    assert PASSWORD not in scene.run("cat work/.git/config")
    git.clone(f"{scene.remote}/private/one.git", f"{folder}/side", branch="side", username=USER, password=PASSWORD)
    assert scene.run("cat side/side.txt") == "side"
    first = scene.run("git -C seed rev-parse main")
    git.clone(f"{scene.remote}/open/one.git", f"{folder}/old", branch="side", commit_id=first)
    assert scene.run("git -C old rev-parse HEAD") == first
    status = git.status(f"{folder}/old")
    assert status.detached and status.current_branch == "HEAD", status
    git.clone(f"{scene.remote}/open/one.git", f"{folder}/shallow", branch="side", depth=1)
    assert scene.run("git -C shallow rev-list --count HEAD") == "1"
    occupied = refused(DaytonaError, lambda: git.clone(f"{scene.remote}/open/one.git", f"{folder}/plain"))
    assert occupied.status_code == 409, occupied
    refused(DaytonaGitRepoNotFoundError, lambda: git.clone(f"{scene.remote}/open/none.git", f"{folder}/no"))
    refused(DaytonaGitBranchNotFoundError, lambda: git.clone(f"{scene.remote}/open/one.git", f"{folder}/no", branch="none"))
    refused(DaytonaGitBranchNotFoundError, lambda: git.clone(f"{scene.remote}/open/one.git", f"{folder}/no", commit_id="0" * 40))
    refused(DaytonaGitTransportFailedError, lambda: git.clone("http://127.0.0.1:9/one.git", f"{folder}/no"))
    refused(DaytonaGitTransportFailedError, lambda: git.clone(f"{scene.remote}/broken/one.git", f"{folder}/no"))
    assert refused(DaytonaError, lambda: git.clone(f"{scene.remote}/open/empty.git", f"{folder}/no")).status_code == 404
    assert scene.run("test -e no || echo gone") == "gone"


def working(scene):
    git, work = scene.git, f"{scene.folder}/work"
    scene.write("work/a.txt", "changed")
    scene.write("work/new file.txt", "new")
    scene.run("rm work/dir/b.txt")
    states = {file.name: (file.staging.value, file.worktree.value) for file in git.status(work).file_status}
    assert states == {
        "a.txt": ("Unmodified", "Modified"),
        "dir/b.txt": ("Unmodified", "Deleted"),
        "new file.txt": ("Untracked", "Untracked"),
    }, states
    git.add(work, ["new file.txt"])
    assert scene.run("git -C work diff --cached --name-only") == "new file.txt"
    git.add(work, ["."])
    assert scene.run("git -C work diff --cached --name-only | wc -l") == "3"
    message = "second commit\n\n# not a comment\nÜmläut"
    answer = git.commit(work, message, "Ann Author", "ann@example.com")
    assert answer.sha == scene.run("git -C work rev-parse HEAD")
    people = "Ann Author ann@example.com"
    assert scene.run("git -C work log -1 --format='%an %ae %cn %ce'") == f"{people} {people}"
    clean = refused(DaytonaError, lambda: git.commit(work, "nothing", "A", "a@b.c"))
    assert clean.status_code == 409, clean
    git.commit(work, "empty", "A", "a@b.c", allow_empty=True)
    assert scene.run("git -C work rev-list --count HEAD") == "3"
    history = scene.api.get_commit_history(work)
    assert [commit.message for commit in history] == ["empty", message, "first commit"], history
    assert history[1].author == "Ann Author" and history[1].timestamp[10] == "T", history
    status = git.status(work)
    assert (status.ahead, status.behind, status.branch_published, status.upstream) == (2, 0, True, "origin/main"), status


def branching(scene):
    git, work = scene.git, f"{scene.folder}/work"
    git.create_branch(work, "feature/x")
    assert scene.run("git -C work branch --show-current") == "feature/x"
    refused(DaytonaGitBranchExistsError, lambda: git.create_branch(work, "main"))
    listed = git.branches(work)
    assert (sorted(listed.branches), listed.current) == (["feature/x", "main"], "feature/x"), listed
    git.checkout_branch(work, "main")
    assert scene.run("git -C work branch --show-current") == "main"
    git.delete_branch(work, "feature/x")
    assert scene.run("git -C work branch --list 'feature/*'") == ""
    refused(DaytonaGitBranchNotFoundError, lambda: git.delete_branch(work, "feature/x"))
    refused(DaytonaGitBranchNotFoundError, lambda: git.checkout_branch(work, "nowhere"))
    first = scene.run("git -C seed rev-parse main")
    git.checkout_branch(work, first)
    assert scene.run("git -C work rev-parse HEAD") == first
    scene.write("work/a.txt", "in the way")
    refused(DaytonaGitDirtyWorktreeError, lambda: git.checkout_branch(work, "main"))
    git.restore(work, ["a.txt"])
    assert scene.run("cat work/a.txt") == "one"
    git.checkout_branch(work, "main")
    for wrong in ["-f", "--detach", "a..b", ""]:
        assert refused(DaytonaError, lambda: git.create_branch(work, wrong)).status_code == 400


def undoing(scene):
    git, work = scene.git, f"{scene.folder}/work"
    scene.write("work/a.txt", "staged")
    git.add(work, ["a.txt"])
    git.restore(work, ["a.txt"], staged=True)
    assert scene.run("git -C work diff --cached --name-only") == ""
    assert scene.run("cat work/a.txt") == "staged"
    git.add(work, ["."])
    git.reset(work)
    assert scene.run("git -C work diff --cached --name-only") == ""
    git.add(work, ["."])
    git.reset(work, files=["a.txt"])
    assert scene.run("git -C work diff --cached --name-only") == ""
    git.reset(work, mode="hard")
    assert scene.run("cat work/a.txt") == "changed"
    git.restore(work, ["a.txt"], source="HEAD~2", staged=True, worktree=True)
    assert scene.run("cat work/a.txt") == "one"
    git.reset(work, mode="hard", target="HEAD~1")
    assert scene.run("git -C work rev-list --count HEAD") == "2"
    assert refused(DaytonaError, lambda: git.reset(work, mode="gentle")).status_code == 400
    refused(DaytonaGitBranchNotFoundError, lambda: git.reset(work, mode="hard", target="nowhere"))
    assert refused(DaytonaError, lambda: git.restore(work, ["nowhere.txt"])).status_code == 404
    assert refused(DaytonaError, lambda: git.restore(work, ["a.txt"], staged=False, worktree=False)).status_code == 400


def exchanging(scene):
    git, work, folder = scene.git, f"{scene.folder}/work", scene.folder
    refused(DaytonaGitAuthFailedError, lambda: git.push(work))
    git.push(work, username=USER, password=PASSWORD)
    assert scene.run("git -C served/one.git rev-parse main") == scene.run("git -C work rev-parse main")
    git.push(work, username=USER, password=PASSWORD)
    git.pull(f"{folder}/plain")
    assert scene.run("cat plain/a.txt") == "changed"
    git.pull(f"{folder}/plain")
    scene.run(
        "cd seed && printf x > c.txt && git add . && git -c user.name=S -c user.email=s@b.c commit -q -m other && "
        "git push -q --force ../served/one.git main"
    )
    scene.run("cd work && printf y > d.txt && git add . && git -c user.name=S -c user.email=s@b.c commit -q -m mine")
    refused(DaytonaGitPushRejectedError, lambda: git.push(work, username=USER, password=PASSWORD))
    assert refused(DaytonaError, lambda: git.pull(work, username=USER, password=PASSWORD)).status_code == 409
    git.create_branch(work, "topic")
    git.push(work, branch="topic", set_upstream=True, username=USER, password=PASSWORD)
    assert scene.run("git -C served/one.git rev-parse topic") == scene.run("git -C work rev-parse topic")
    status = git.status(work)
    assert (status.upstream, status.branch_published, status.ahead) == ("origin/topic", True, 0), status
    assert refused(DaytonaError, lambda: git.push(work, remote="nowhere")).status_code == 404
    git.checkout_branch(work, scene.run("git -C work rev-parse HEAD"))
    assert refused(DaytonaError, lambda: git.push(work, username=USER, password=PASSWORD)).status_code == 404
    git.checkout_branch(work, "main")


def configuring(scene):
    git, folder = scene.git, scene.folder
    git.init(f"{folder}/fresh", initial_branch="trunk")
    assert scene.run("git -C fresh symbolic-ref HEAD") == "refs/heads/trunk"
    assert git.branches(f"{folder}/fresh").branches == []
    assert scene.api.get_commit_history(f"{folder}/fresh") == []
    assert refused(DaytonaError, lambda: git.init(f"{folder}/fresh")).status_code == 409
    git.init(f"{folder}/naked.git", bare=True)
    assert scene.run("git -C naked.git rev-parse --is-bare-repository") == "true"
    fresh = f"{folder}/fresh"
    git.remote_add(fresh, "origin", f"http://{USER}:{PASSWORD.replace('/', '%2F')}@{scene.remote[7:]}/private/one.git", fetch=True)
    assert scene.run("git -C fresh branch -r --list origin/main") == "origin/main"
    assert "s3cr3t" not in scene.run("cat fresh/.git/config")
    listed = git.remote_get(fresh, "origin")
    assert listed == f"http://{USER}@{scene.remote[7:]}/private/one.git", listed
    assert refused(DaytonaError, lambda: git.remote_add(fresh, "origin", "https://example.com/x")).status_code == 409
    git.remote_add(fresh, "origin", f"{scene.remote}/open/one.git", overwrite=True)
    assert [(r.name, r.url) for r in git.remotes(fresh).remotes] == [("origin", f"{scene.remote}/open/one.git")]
    git.pull(fresh, branch="main")
    assert scene.run("cat fresh/c.txt") == "x"
    assert git.get_config("user.name", scope="local", path=fresh) is None
    git.set_config("user.name", "Local Ann", scope="local", path=fresh)
    assert scene.run("git -C fresh config --local user.name") == "Local Ann"
    assert git.get_config("user.name", scope="local", path=fresh) == "Local Ann"
    git.configure_user("Bo", "bo@example.com", scope="local", path=fresh)
    assert scene.run("git -C fresh config user.email") == "bo@example.com"
    assert refused(DaytonaError, lambda: git.set_config("user.name", "x", scope="local")).status_code == 400
    refused(DaytonaGitRepoNotFoundError, lambda: git.status(f"{folder}/nowhere"))
    refused(DaytonaGitRepoNotFoundError, lambda: git.branches(folder))
    git.set_config("sandhaus.test", "global value")
    assert scene.run("git config --global sandhaus.test") == "global value"
    assert git.get_config("sandhaus.test") == "global value"
    scene.run("git config --global --unset sandhaus.test")
    host = scene.remote[7:]
    git.dangerously_authenticate(USER, PASSWORD, host=host, protocol="http")
    git.clone(f"{scene.remote}/private/one.git", f"{folder}/stored")
    assert scene.run("cat stored/c.txt") == "x"
    scene.run(f"git config --global --unset-all credential.helper; sed -i '/{host.replace(':', '.*')}/d' ~/.git-credentials")


@pytest.fixture(scope="module")
def scene():
    with Scene() as scene:
        yield scene


@pytest.mark.os
@pytest.mark.parametrize("part", (cloning, working, branching, undoing, exchanging, configuring))
def test_git(scene, part):
    part(scene)
