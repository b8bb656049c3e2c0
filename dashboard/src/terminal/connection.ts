/**
 * A terminal inside a sandbox, over a WebSocket. The shell lives in the sandbox and goes on when the connection breaks;
 * the connection is made again, and what was printed lately comes first.
 *
 * ```text
 *   connect ──> open ──> closed by the shell's end: done
 *      ^          └────> broken: wait, connect again, ever more slowly
 *      └────────────────────┘
 * ```
 */

import { ApiError, ask, path, socketAddress, words } from "../api";

/** How the connection is. */
export type Link =
  | { state: "connecting" }
  | { state: "open" }
  | { state: "waiting"; why: string }
  | { state: "ended"; why: string };

export interface Size {
  cols: number;
  rows: number;
}

export interface Listener {
  /** Bytes from the shell. Old ones were seen before, or could have been: they are shown, never answered. */
  output: (bytes: Uint8Array, age: "old" | "new") => void;
  link: (link: Link) => void;
  /** The screen is about to be filled again from the beginning. */
  begin: () => void;
}

const PAUSE_MS_FIRST = 500;
const PAUSE_MS_MAX = 10_000;

/** Typing counts as use of the sandbox, noted at most this often. */
const NOTE_USE_MS = 60_000;

/** Most bytes of one message, as the sandbox takes them. */
const MESSAGE_BYTES_MAX = 32 * 1024;

/** Characters typed before the first connection that are kept for it. */
const EARLY_CHARS_MAX = 4096;

/** Control message of the sandbox. */
interface Control {
  status?: string;
  error?: string;
  exitCode?: number;
  exitReason?: string;
  scrollback?: number;
}

/** Names of this page's terminals begin so. */
export const NAME_PREFIX = "page-";

export interface Known {
  id: string;
  createdAt: string;
}

function route(sandbox: string, ...rest: string[]): string[] {
  return ["v1", "sessions", sandbox, "toolbox", "process", "pty", ...rest];
}

/** The terminals that this page has in a sandbox, oldest first. */
export async function terminals(sandbox: string): Promise<readonly Known[]> {
  const { sessions } = await ask<{ sessions: Known[] }>(path(route(sandbox)));
  const ours = sessions.filter((known) => known.id.startsWith(NAME_PREFIX));
  return ours.sort((left, right) => left.createdAt.localeCompare(right.createdAt));
}

/** Makes a terminal and gives its name. Its shell starts when somebody connects. */
export async function create(sandbox: string): Promise<string> {
  const id = `${NAME_PREFIX}${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
  await ask(path(route(sandbox)), { method: "POST", json: { id, lazyStart: true } });
  return id;
}

export async function remove(sandbox: string, id: string): Promise<void> {
  await ask(path(route(sandbox, id)), { method: "DELETE" });
}

export class Connection {
  readonly #encoder = new TextEncoder();
  #socket: WebSocket | undefined;
  #timer: number | undefined;
  #failures = 0;
  #old = 0;
  #over = false;
  #early: string | undefined = "";
  #noted = performance.now();
  #size: Size | undefined;

  constructor(
    readonly sandbox: string,
    readonly id: string,
    readonly listener: Listener,
  ) {}

  connect(): void {
    clearTimeout(this.#timer);
    if (this.#over) return;
    this.listener.link({ state: "connecting" });
    const address = socketAddress(path(route(this.sandbox, this.id, "connect"), { scrollback: "true" }));
    const socket = new WebSocket(address, ["X-Daytona-Pty-Exit-Control"]);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    let begun = false;
    socket.onmessage = (event: MessageEvent<ArrayBuffer | string>) => {
      if (typeof event.data === "string") {
        const control = JSON.parse(event.data) as Control;
        if (control.status === "connected") {
          begun = true;
          this.#failures = 0;
          this.#old = control.scrollback ?? 0;
          this.listener.begin();
          this.listener.link({ state: "open" });
          if (this.#size) this.resize(this.#size);
          const early = this.#early ?? "";
          this.#early = undefined;
          if (early !== "") this.type(early);
        } else if (control.status === "exited") {
          this.#end(`the shell has ended${control.exitCode ? ` with status ${control.exitCode}` : ""}`);
        } else if (control.status === "error") {
          this.#end(control.error ?? "the terminal is gone");
        }
        return;
      }
      const bytes = new Uint8Array(event.data);
      const old = Math.min(this.#old, bytes.length);
      this.#old -= old;
      if (old > 0) this.listener.output(bytes.subarray(0, old), "old");
      if (old < bytes.length) this.listener.output(bytes.subarray(old), "new");
    };
    socket.onclose = (event) => {
      if (this.#socket !== socket || this.#over) return;
      this.#socket = undefined;
      // A clean end from inside, whatever was said before it.
      if (begun && event.reason.startsWith("{")) this.#end("the shell has ended");
      else void this.#retry();
    };
  }

  /** Asks the server why a connection did not come about: a WebSocket does not tell. */
  async #retry(): Promise<void> {
    let why = "the connection broke";
    try {
      await ask(path(route(this.sandbox, this.id)));
    } catch (error) {
      why = words(error);
      if (error instanceof ApiError && (error.status === 404 || error.status === 410)) {
        this.#end("this terminal is gone");
        return;
      }
    }
    if (this.#over) return;
    const pause = Math.min(PAUSE_MS_FIRST * 2 ** this.#failures, PAUSE_MS_MAX);
    this.#failures += 1;
    this.listener.link({ state: "waiting", why });
    this.#timer = window.setTimeout(() => this.connect(), pause);
  }

  #end(why: string): void {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#timer);
    this.listener.link({ state: "ended", why });
  }

  /** Types text, or bytes that a program inside asked for. */
  type(text: string, kind: "text" | "bytes" = "text"): void {
    if (this.#early !== undefined) {
      this.#early = (this.#early + text).slice(0, EARLY_CHARS_MAX);
      return;
    }
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    const bytes = kind === "text" ? this.#encoder.encode(text) : Uint8Array.from(text, (char) => char.charCodeAt(0));
    for (let at = 0; at < bytes.length; at += MESSAGE_BYTES_MAX) {
      this.#socket.send(bytes.subarray(at, at + MESSAGE_BYTES_MAX));
    }
    const now = performance.now();
    if (now - this.#noted > NOTE_USE_MS) {
      this.#noted = now;
      // Any call through the sandbox's toolbox moves its deadline.
      ask(path(route(this.sandbox, this.id))).catch(() => undefined);
    }
  }

  resize(size: Size): void {
    this.#size = size;
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    // A terminal that ended meanwhile has no size; its end is on the way.
    ask(path(route(this.sandbox, this.id, "resize")), { method: "POST", json: size }).catch(() => undefined);
  }

  /** Hangs up; the shell goes on. */
  close(): void {
    this.#over = true;
    clearTimeout(this.#timer);
    this.#socket?.close();
    this.#socket = undefined;
  }
}
