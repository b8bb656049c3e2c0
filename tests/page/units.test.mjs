// Parts of the page that need no browser.

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { after } from "node:test";
import { build } from "esbuild";

const folder = await mkdtemp(join(tmpdir(), "sandhaus-page-units-"));
after(() => rm(folder, { recursive: true }));

async function load(name) {
  const outfile = join(folder, `${name}.mjs`);
  await build({ entryPoints: [`src/${name}.ts`], outfile, bundle: true, format: "esm", platform: "node", logLevel: "error" });
  return import(outfile);
}

const format = await load("format");
const output = await load("output");
const bytes = (text) => new TextEncoder().encode(text);

test("sizes and times read well", () => {
  assert.deepEqual([0, 1023, 1024, 1536, 1 << 30, 5e15].map(format.bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 GiB", "4547 TiB"]);
  assert.deepEqual([0, 59_400, 60_000, 3_600_000, 5_400_000, 90_000_000].map(format.duration), ["0 s", "59 s", "1 min", "1 h", "1 h 30 min", "1 d 1 h"]);
  assert.equal(format.until("9999-12-31T23:59:59Z", 0), "never");
  assert.equal(format.since("not a time", 0), "");
});

test("foreign text cannot hide or turn around", () => {
  assert.equal(format.visible("a\u202egnp.exe\u0000\u001b[31m\n"), "a\ufffdgnp.exe\ufffd\ufffd[31m\ufffd");
  assert.equal(format.visible("<b>ä 漢</b>"), "<b>ä 漢</b>");
  assert.equal(format.title("x".repeat(500)).length, 80);
});

test("frames arrive in any pieces", () => {
  const frame = (kind, text) => {
    const content = bytes(text);
    const whole = new Uint8Array(16 + content.length);
    whole[0] = kind;
    new DataView(whole.buffer).setUint32(4, content.length);
    whole.set(content, 16);
    return whole;
  };
  const stream = [frame(1, "{}"), frame(2, "out"), frame(0, ""), frame(3, "err"), frame(4, "{}")];
  const all = new Uint8Array(stream.flatMap((piece) => [...piece]));
  for (const size of [1, 7, all.length]) {
    const frames = new output.Frames();
    const found = [];
    for (let at = 0; at < all.length; at += size) found.push(...frames.push(all.subarray(at, at + size)));
    assert.deepEqual(found.map((piece) => new TextDecoder().decode(piece)), ["out", "err"]);
  }
  const malformed = new Uint8Array(16).fill(255);
  assert.throws(() => new output.Frames().push(malformed));
});

test("terminal sequences are dropped, also across pieces", () => {
  const text = "a\u001b[31mred\u001b[0m \u001b]0;title\u0007b\u001b]52;c;aGk=\u001b\\c\r\nd\u0000ä";
  for (const size of [1, 3, 1000]) {
    const plain = new output.Plain();
    const raw = bytes(text);
    let all = "";
    for (let at = 0; at < raw.length; at += size) all += plain.push(raw.subarray(at, at + size));
    assert.equal(all, "ared bc\ndä", `pieces of ${size}`);
  }
  assert.equal(output.settled("10%\r50%\r100%\nnext"), "100%\nnext");
  assert.equal(output.withoutMarks("\u0001\u0001\u0001out\u0002\u0002\u0002err"), "outerr");
});
