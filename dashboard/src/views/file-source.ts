/** Where files are: in a sandbox, or in a workspace. The browser of files knows neither. */

import { ask, path, put, send } from "../api";
import type { Entry } from "../wire";

export interface FileSource {
  /** Changes when it is another place. */
  key: string;
  list: (folder: string, signal: AbortSignal) => Promise<readonly Entry[]>;
  /** Where a file can be had as an attachment. */
  address: (file: string) => string;
  upload: (file: string, content: File, progress: (sent: number) => void, signal: AbortSignal) => Promise<void>;
  makeFolder: ((folder: string) => Promise<void>) | undefined;
  remove: (entry: string, kind: "file" | "folder") => Promise<void>;
}

export function sandboxFiles(id: string): FileSource {
  const fs = (...rest: string[]): string[] => ["v1", "sessions", id, "fs", ...rest];
  return {
    key: `sandbox ${id}`,
    list: async (folder, signal) => {
      const { entries } = await ask<{ entries: Entry[] }>(path(fs("list"), folder === "" ? {} : { path: folder }), { signal });
      return entries;
    },
    address: (file) => path(fs("raw"), { path: file }),
    upload: (file, content, progress, signal) => put(path(fs("raw"), { path: file }), content, progress, signal),
    makeFolder: async (folder) => {
      await send(path(["v1", "sessions", id, "toolbox", "files", "folder"], { path: folder, root: "/workspace" }), {
        method: "POST",
      });
    },
    remove: async (entry, kind) => {
      await ask(path(fs(), { path: entry, recursive: String(kind === "folder") }), { method: "DELETE" });
    },
  };
}

export function workspaceFiles(id: string): FileSource {
  const fs = (...rest: string[]): string[] => ["v1", "workspaces", id, "fs", ...rest];
  const query = (entry: string): Record<string, string> => (entry === "" ? {} : { path: entry });
  return {
    key: `workspace ${id}`,
    list: async (folder, signal) => {
      const { entries } = await ask<{ entries: Entry[] }>(path(fs(), query(folder)), { signal });
      return entries;
    },
    address: (file) => path(fs("raw"), { path: file }),
    upload: (file, content, progress, signal) => put(path(fs("raw"), { path: file }), content, progress, signal),
    makeFolder: undefined,
    remove: async (entry, kind) => {
      await ask(path(fs(), { path: entry, recursive: String(kind === "folder") }), { method: "DELETE" });
    },
  };
}
