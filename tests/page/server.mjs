// A real server on a data directory of its own.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

export class Server {
  static async start(key, lines = []) {
    const folder = await mkdtemp(join(tmpdir(), "sandhaus-page-test-"));
    const config = join(folder, "sandhaus.yaml");
    await writeFile(config, [`listen: 127.0.0.1:0`, `api_key: ${key}`, ...lines, ""].join("\n"));
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^SAND(HAUS|KASTEN)_/.test(name)));
    const args = ["--config", config, "--data-dir", join(folder, "data"), "serve"];
    const child = spawn(process.env.SANDHAUS_BIN, args, { cwd: "/", env, stdio: ["ignore", "ignore", "pipe"] });
    const log = [];
    const url = await new Promise((resolve, reject) => {
      createInterface(child.stderr).on("line", (line) => {
        log.push(line);
        const found = /^ {2}page {4}(\S+)\/$/.exec(line);
        if (found) resolve(found[1]);
      });
      child.on("exit", () => reject(new Error(`the server does not start, or has no page:\n${log.join("\n")}`)));
    });
    return Object.assign(new Server(), { key, folder, child, log, url });
  }

  /** A call of the API with the key; the answer's JSON. */
  async call(method, path, body) {
    const headers = { authorization: `Bearer ${this.key}` };
    const request = { method, headers, ...(body === undefined ? {} : { body: JSON.stringify(body) }) };
    const response = await fetch(this.url + path, request);
    const answer = await response.json();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${answer.message}`);
    return answer;
  }

  create(wanted = {}) {
    return this.call("POST", "/v1/sessions", wanted);
  }

  async exec(id, cmd) {
    return (await this.call("POST", `/v1/sessions/${id}/exec`, { cmd })).output;
  }

  async clear() {
    const sessions = await this.call("GET", "/v1/sessions");
    await Promise.all(sessions.map(({ id }) => this.call("DELETE", `/v1/sessions/${id}`)));
  }

  /** Ends it with all its sandboxes; gives what in its log somebody would have to look at. */
  async stop() {
    await this.clear();
    this.child.removeAllListeners("exit");
    const ended = once(this.child, "exit");
    this.child.kill("SIGTERM");
    const [status] = await ended;
    await rm(this.folder, { recursive: true });
    const odd = this.log.filter((line) => /\b(WARN|ERROR)\b/.test(line));
    return status === 0 ? odd : [...odd, `it ended with ${status}`];
  }
}
