/** A browser of files: look, upload, download, delete. */

import { useEffect, useRef, useState } from "preact/hooks";
import { isAbort, words } from "../api";
import { bytes, moment, visible } from "../format";
import { Button, Nothing, Trouble, Waiting } from "../ui/controls";
import { confirm, Dialog } from "../ui/dialog";
import { Icon } from "../ui/icon";
import { failed, said, speak } from "../ui/notice";
import type { Entry } from "../wire";
import type { FileSource } from "./file-source";

/** Most files of one upload, so that a mistaken drop of a home folder stops early. */
const FILES_MAX = 2000;

/** Files uploaded at the same time. */
const AT_ONCE = 3;

/** Rows shown at first. */
const ROWS = 300;

interface Upload {
  id: number;
  name: string;
  size: number;
  sent: number;
  state: "waiting" | "going" | "done" | "failed";
  why?: string;
}

interface Wanted {
  /** Path beneath the open folder. */
  name: string;
  file: File;
}

function join(folder: string, name: string): string {
  return folder === "" ? name : `${folder}/${name}`;
}

/** Every file beneath what was dropped. */
async function collect(entries: readonly FileSystemEntry[]): Promise<Wanted[]> {
  const wanted: Wanted[] = [];
  const visit = async (entry: FileSystemEntry, parent: string): Promise<void> => {
    const name = join(parent, entry.name);
    if (entry.isFile) {
      const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
      if (wanted.length >= FILES_MAX) throw new Error(`at most ${FILES_MAX} files at once`);
      wanted.push({ name, file });
      return;
    }
    const reader = (entry as FileSystemDirectoryEntry).createReader();
    for (;;) {
      const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
      if (some.length === 0) return;
      for (const one of some) await visit(one, name);
    }
  };
  for (const entry of entries) await visit(entry, "");
  return wanted;
}

/** Uploads of one browser, a few at a time. */
function useUploads(source: FileSource, changed: () => void) {
  const [uploads, setUploads] = useState<readonly Upload[]>([]);
  const stop = useRef(new AbortController());
  const count = useRef(0);
  useEffect(() => {
    const stopping = new AbortController();
    stop.current = stopping;
    return () => stopping.abort();
  }, [source.key]);
  const note = (id: number, change: Partial<Upload>): void =>
    setUploads((before) => before.map((one) => (one.id === id ? { ...one, ...change } : one)));
  const begin = async (folder: string, wanted: readonly Wanted[]): Promise<void> => {
    const signal = stop.current.signal;
    const jobs = wanted.map((one) => {
      count.current += 1;
      return { id: count.current, ...one };
    });
    const fresh = jobs.map(({ id, name, file }): Upload => ({ id, name, size: file.size, sent: 0, state: "waiting" }));
    setUploads((before) => [...before.filter((one) => one.state !== "done"), ...fresh]);
    const waiting = [...jobs];
    let done = 0;
    const work = async (): Promise<void> => {
      for (let next = waiting.shift(); next; next = waiting.shift()) {
        const { id, name, file } = next;
        note(id, { state: "going" });
        try {
          await source.upload(join(folder, name), file, (sent) => note(id, { sent }), signal);
          note(id, { state: "done", sent: file.size });
          done += 1;
        } catch (error) {
          if (isAbort(error)) return;
          note(id, { state: "failed", why: words(error) });
        }
      }
    };
    await Promise.all(Array.from({ length: Math.min(AT_ONCE, jobs.length) }, work));
    if (signal.aborted) return;
    changed();
    if (done === 1 && jobs.length === 1) said(`${visible(jobs[0]?.name ?? "")} uploaded`);
    else if (done > 0) said(`${done} files uploaded`);
    setUploads((before) => before.filter((one) => one.state !== "done"));
  };
  const dismiss = (id: number): void => setUploads((before) => before.filter((one) => one.id !== id));
  return { uploads, begin, dismiss };
}

export function Files({ source, root }: { source: FileSource; root: string }) {
  const [folder, setFolder] = useState("");
  const [entries, setEntries] = useState<readonly Entry[]>();
  const [trouble, setTrouble] = useState<string>();
  const [look, setLook] = useState(0);
  const [rows, setRows] = useState(ROWS);
  const [naming, setNaming] = useState(false);
  const [over, setOver] = useState(false);
  const picker = useRef<HTMLInputElement>(null);
  const again = (): void => setLook((before) => before + 1);
  const { uploads, begin, dismiss } = useUploads(source, again);

  useEffect(() => {
    const asking = new AbortController();
    setTrouble(undefined);
    source.list(folder, asking.signal).then(
      (found) => {
        const folders = found.filter((entry) => entry.is_dir);
        const files = found.filter((entry) => !entry.is_dir);
        setEntries([...folders, ...files]);
        speak(`${found.length} entries`);
      },
      (error: unknown) => {
        if (!isAbort(error)) setTrouble(words(error));
      },
    );
    return () => asking.abort();
  }, [source.key, folder, look]);

  const enter = (to: string): void => {
    setEntries(undefined);
    setRows(ROWS);
    setFolder(to);
  };
  const drop = (data: DataTransfer | null): void => {
    // Taken before anything is waited for: the list is empty afterwards.
    const items = [...(data?.items ?? [])].filter((item) => item.kind === "file");
    const found = items.map((item) => ({ entry: item.webkitGetAsEntry(), file: item.getAsFile() }));
    if (found.length === 0) return;
    const entries = found.map(({ entry }) => entry).filter((entry) => entry !== null);
    // What another page made and let go of here has no place on a disk.
    const loose = found.flatMap(({ entry, file }) => (entry === null && file ? [{ name: file.name, file }] : []));
    collect(entries).then(
      (wanted) => void begin(folder, [...loose, ...wanted]),
      (error: unknown) => failed(words(error)),
    );
  };
  const remove = async (entry: Entry): Promise<void> => {
    const yes = await confirm({
      title: `Delete ${visible(entry.name)}?`,
      text: entry.is_dir ? "The folder and everything in it are deleted." : "The file is deleted.",
      action: "Delete",
    });
    if (!yes) return;
    try {
      await source.remove(join(folder, entry.name), entry.is_dir ? "folder" : "file");
      said(`${visible(entry.name)} deleted`);
    } catch (error) {
      failed(words(error));
    }
    again();
  };

  const parts = folder === "" ? [] : folder.split("/");
  return (
    <div
      class={over ? "files over" : "files"}
      onDragOver={(event) => {
        if (!event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={(event) => {
        const to = event.relatedTarget;
        if (!(to instanceof Node && event.currentTarget.contains(to))) setOver(false);
      }}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        drop(event.dataTransfer);
      }}
    >
      <div class="bar">
        <nav aria-label="Folder" class="crumbs">
          <button type="button" onClick={() => enter("")} aria-current={parts.length === 0 ? "true" : undefined}>
            {root}
          </button>
          {parts.map((part, index) => (
            <span key={index} class="crumb">
              <Icon name="chevron" />
              <button
                type="button"
                aria-current={index === parts.length - 1 ? "true" : undefined}
                onClick={() => enter(parts.slice(0, index + 1).join("/"))}
              >
                <bdi>{visible(part)}</bdi>
              </button>
            </span>
          ))}
        </nav>
        <div class="bar-actions">
          <Button bare kind="quiet" icon="refresh" onClick={again}>
            Refresh
          </Button>
          {source.makeFolder && (
            <Button icon="folder" onClick={() => setNaming(true)}>
              New folder
            </Button>
          )}
          <Button kind="primary" icon="upload" onClick={() => picker.current?.click()}>
            Upload
          </Button>
          <input
            ref={picker}
            class="unseen"
            type="file"
            multiple
            tabIndex={-1}
            aria-label="Files to upload"
            onChange={(event) => {
              const input = event.currentTarget;
              const wanted = [...(input.files ?? [])].map((file) => ({ name: file.name, file }));
              input.value = "";
              if (wanted.length > 0) void begin(folder, wanted);
            }}
          />
        </div>
      </div>
      {uploads.length > 0 && <Uploads uploads={uploads} dismiss={dismiss} />}
      {trouble !== undefined && <Trouble again={again}>{trouble}</Trouble>}
      {trouble === undefined && !entries && <Waiting label="Loading files" />}
      {trouble === undefined && entries?.length === 0 && (
        <Nothing icon="folder" title="Nothing here">
          <p>Drop files or folders here, or press Upload.</p>
        </Nothing>
      )}
      {trouble === undefined && entries && entries.length > 0 && (
        <table class="list" role="table">
          <caption class="unseen">Files</caption>
          <thead role="rowgroup">
            <tr role="row">
              <th role="columnheader">Name</th>
              <th role="columnheader">Size</th>
              <th role="columnheader">Changed</th>
              <th role="columnheader">
                <span class="unseen">Actions</span>
              </th>
            </tr>
          </thead>
          <tbody role="rowgroup">
            {entries.slice(0, rows).map((entry) => (
              <FileRow
                key={entry.name}
                entry={entry}
                address={source.address(join(folder, entry.name))}
                enter={() => enter(join(folder, entry.name))}
                remove={() => void remove(entry)}
              />
            ))}
          </tbody>
        </table>
      )}
      {entries && entries.length > rows && (
        <p class="more">
          <Button onClick={() => setRows(rows + ROWS)}>{`Show more of ${entries.length}`}</Button>
        </p>
      )}
      <div class="drop-hint" aria-hidden="true">
        <Icon name="upload" />
        <span>Drop to upload here</span>
      </div>
      {naming && source.makeFolder && (
        <NewFolder
          onClose={() => setNaming(false)}
          make={async (name) => {
            await source.makeFolder?.(join(folder, name));
            again();
          }}
        />
      )}
    </div>
  );
}

interface FileRowProps {
  entry: Entry;
  address: string;
  enter: () => void;
  remove: () => void;
}

function FileRow({ entry, address, enter, remove }: FileRowProps) {
  const name = visible(entry.name);
  return (
    <tr role="row">
      <th role="rowheader" scope="row" class="name">
        <Icon name={entry.is_dir ? "folder" : "file"} />
        {entry.is_dir ? (
          <button type="button" class="link" onClick={enter}>
            <bdi>{name}</bdi>
          </button>
        ) : (
          <bdi>{name}</bdi>
        )}
      </th>
      <td role="cell" data-label="Size" class="number">
        {entry.is_dir || entry.size === undefined ? "" : bytes(entry.size)}
      </td>
      <td role="cell" data-label="Changed" class="number">
        {entry.modified_at === undefined ? "" : moment(entry.modified_at)}
      </td>
      <td role="cell" class="row-actions">
        {!entry.is_dir && (
          <a class="button quiet bare" href={address} download={entry.name} title={`Download ${name}`}>
            <Icon name="download" />
            <span class="unseen">Download {name}</span>
          </a>
        )}
        <Button bare kind="quiet" icon="trash" onClick={remove}>
          {`Delete ${name}`}
        </Button>
      </td>
    </tr>
  );
}

function Uploads({ uploads, dismiss }: { uploads: readonly Upload[]; dismiss: (id: number) => void }) {
  const done = uploads.reduce((sum, one) => sum + one.sent, 0);
  const all = uploads.reduce((sum, one) => sum + one.size, 0);
  const shown = uploads.filter((one) => one.state === "going" || one.state === "failed");
  return (
    <section class="uploads" aria-label="Uploads">
      <p>
        Uploading {uploads.length === 1 ? "1 file" : `${uploads.length} files`}, {bytes(done)} of {bytes(all)}
      </p>
      <ul>
        {shown.map((one) => (
          <li key={one.id}>
            <bdi>{visible(one.name)}</bdi>
            {one.state === "failed" ? (
              <span class="field-trouble" role="alert">
                {one.why}
              </span>
            ) : (
              <progress max={Math.max(1, one.size)} value={one.sent} aria-label={`Upload of ${visible(one.name)}`} />
            )}
            {one.state === "failed" && (
              <Button bare kind="quiet" icon="close" onClick={() => dismiss(one.id)}>
                Dismiss
              </Button>
            )}
          </li>
        ))}
      </ul>
    </section>
  );
}

function NewFolder({ onClose, make }: { onClose: () => void; make: (name: string) => Promise<void> }) {
  const field = useRef<HTMLInputElement>(null);
  const [trouble, setTrouble] = useState<string>();
  const submit = async (): Promise<void> => {
    const name = field.current?.value.trim() ?? "";
    if (name === "") return;
    try {
      await make(name);
      onClose();
    } catch (error) {
      setTrouble(words(error));
    }
  };
  return (
    <Dialog title="New folder" onClose={onClose}>
      <form
        class="fields one"
        onSubmit={(event) => {
          event.preventDefault();
          void submit();
        }}
      >
        <div class="field">
          <label for="folder-name">Name</label>
          <input id="folder-name" ref={field} required autofocus autocomplete="off" spellcheck={false} />
        </div>
        <p class="field-trouble" role="alert">
          {trouble}
        </p>
        <footer>
          <Button onClick={onClose}>Cancel</Button>
          <Button kind="primary" type="submit">
            Make folder
          </Button>
        </footer>
      </form>
    </Dialog>
  );
}
