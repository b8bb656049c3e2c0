/** From a program's output to plain text: frames and marks are taken apart, terminal sequences are dropped. */

/** Bytes of a frame's header. */
const HEADER_BYTES = 16;

/** Largest payload that is believed. */
const PAYLOAD_BYTES_MAX = 64 * 1024;

const KIND_STDOUT = 2;
const KIND_STDERR = 3;

/** Takes output out of framed bytes that arrive in arbitrary pieces. */
export class Frames {
  #rest = new Uint8Array();

  push(bytes: Uint8Array): Uint8Array[] {
    const all = new Uint8Array(this.#rest.length + bytes.length);
    all.set(this.#rest);
    all.set(bytes, this.#rest.length);
    const found: Uint8Array[] = [];
    let at = 0;
    while (all.length - at >= HEADER_BYTES) {
      const header = new DataView(all.buffer, at, HEADER_BYTES);
      const kind = header.getUint8(0);
      const length = header.getUint32(4);
      if (length > PAYLOAD_BYTES_MAX) throw new Error("the output is malformed");
      const end = at + HEADER_BYTES + length;
      if (end > all.length) break;
      if (kind === KIND_STDOUT || kind === KIND_STDERR) found.push(all.subarray(at + HEADER_BYTES, end));
      at = end;
    }
    this.#rest = all.slice(at);
    return found;
  }
}

/** Precede the pieces of a command's log: three equal bytes that name the stream. */
const MARKS = /\u0001{3}|\u0002{3}/g;

export function withoutMarks(text: string): string {
  return text.replace(MARKS, "");
}

/** Longest beginning of a sequence that is waited for; a longer one is dropped as it comes. */
const SEQUENCE_CHARS_MAX = 4096;

/** A whole sequence, or the beginning of one that breaks off: of a control string, of a control sequence, of any. */
const SEQUENCE =
  /\u001b(?:\[[0-?]*[ -/]*(?:[@-~]|(?=[^ -~]))|[\]PX^_][^\u0007\u001b]*(?:\u0007|\u001b\\|(?=\u001b[^\\]))|[ -/]+(?:[0-~]|(?=[^ -~]))|[0-OQ-WYZ\\`-~]|(?=[^ -~]))/g;

/** Drops terminal sequences, and shows the rest of what cannot be seen as nothing. */
export class Plain {
  readonly #decoder = new TextDecoder();
  #rest = "";

  push(bytes: Uint8Array): string {
    return this.text(this.#decoder.decode(bytes, { stream: true }));
  }

  text(more: string): string {
    let all = (this.#rest + more).replace(SEQUENCE, "");
    const begun = all.indexOf("\u001b");
    const open = begun >= 0 && all.length - begun < SEQUENCE_CHARS_MAX;
    // A carriage return may be half of a line's end.
    const cut = open ? begun : all.endsWith("\r") ? all.length - 1 : all.length;
    this.#rest = all.slice(cut);
    all = all.slice(0, cut);
    return all.replace(/\r+\n/g, "\n").replace(/[\u0000-\u0008\u000b-\u000c\u000e-\u001f\u007f-\u009f]/g, "");
  }
}

/** What a reader sees of text with carriage returns: the last that was written on each line. */
export function settled(text: string): string {
  if (!text.includes("\r")) return text;
  return text
    .split("\n")
    .map((line) => line.slice(line.lastIndexOf("\r", line.length - 2) + 1).replace("\r", ""))
    .join("\n");
}
