// The page's sources: types and lints.

import { execFile } from "node:child_process";
import test from "node:test";
import { promisify } from "node:util";

const run = promisify(execFile);

async function tool(name, ...args) {
  try {
    await run(`node_modules/.bin/${name}`, args);
  } catch (error) {
    throw new Error(`${name}:\n${error.stdout}${error.stderr}`);
  }
}

test("page sources have the types they claim", () => tool("tsc", "--noEmit"));

test("page sources pass the lints", () => tool("eslint", ".", "--max-warnings=0"));
