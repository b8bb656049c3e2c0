/** What can be done to sandboxes, each with its words. */

import { ask, path, words } from "./api";
import { watch } from "./live";
import { confirm } from "./ui/dialog";
import { failed, said } from "./ui/notice";
import type { CreateSandbox, Sandbox, Status } from "./wire";

export type Change = "pause" | "resume" | "stop" | "start";

const DONE: Record<Change, string> = { pause: "paused", resume: "resumed", stop: "stopped", start: "started" };

/** What makes sense in a state. */
export function changes(status: Status): readonly Change[] {
  switch (status) {
    case "running":
      return ["pause", "stop"];
    case "paused":
      return ["resume", "stop"];
    case "stopped":
    case "crashed":
      return ["start"];
    case "archived":
    case "destroyed":
    case "destroying":
    case "expired":
    case "pool_idle":
    case "starting":
    case "stopping":
    case "suspended":
    default:
      return [];
  }
}

export function nameOf(sandbox: Pick<Sandbox, "id" | "name">): string {
  return sandbox.name ?? sandbox.id;
}

export async function create(wanted: CreateSandbox): Promise<Sandbox> {
  const made = await ask<Sandbox>("/v1/sessions", { method: "POST", json: wanted });
  await watch.refresh();
  return made;
}

export async function change(sandbox: Sandbox, to: Change): Promise<void> {
  try {
    await ask(path(["v1", "sessions", sandbox.id, to]), { method: "POST" });
    said(`${nameOf(sandbox)} ${DONE[to]}`);
  } catch (error) {
    failed(`${nameOf(sandbox)}: ${words(error)}`);
  }
  await watch.refresh();
}

/** Longest life that the server takes, and what one press adds, in seconds. */
const LIFE_MAX = 86_400;
const EXTENSION = 3600;

/** Has a sandbox live an hour longer than it would. */
export async function extend(sandbox: Sandbox): Promise<void> {
  const left = Math.max(0, (Date.parse(sandbox.expires_at) - Date.now()) / 1000);
  const ttl_seconds = Math.min(LIFE_MAX, Math.ceil(left) + EXTENSION);
  try {
    await ask(path(["v1", "sessions", sandbox.id, "extend"]), { method: "POST", json: { ttl_seconds } });
    said(`${nameOf(sandbox)} lives longer`);
  } catch (error) {
    failed(`${nameOf(sandbox)}: ${words(error)}`);
  }
  await watch.refresh();
}

/** Most sandboxes destroyed at the same time. */
const AT_ONCE = 6;

/** Destroys after a question; true when it was answered with yes. */
export async function destroy(sandboxes: readonly Sandbox[]): Promise<boolean> {
  const only = sandboxes.length === 1 ? sandboxes[0] : undefined;
  const what = only ? nameOf(only) : `${sandboxes.length} sandboxes`;
  const yes = await confirm({
    title: `Destroy ${what}?`,
    text: only
      ? "Its processes end and its files are deleted. This cannot be undone."
      : `The processes of all ${sandboxes.length} end and their files are deleted. This cannot be undone.`,
    action: "Destroy",
  });
  if (!yes) return false;
  const waiting = [...sandboxes];
  let gone = 0;
  const work = async (): Promise<void> => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      try {
        await ask(path(["v1", "sessions", next.id]), { method: "DELETE" });
        gone += 1;
      } catch (error) {
        failed(`${nameOf(next)}: ${words(error)}`);
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, sandboxes.length) }, work));
  if (gone > 0) said(only ? `${what} destroyed` : `${gone} sandboxes destroyed`);
  await watch.refresh();
  return true;
}
