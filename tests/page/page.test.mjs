// The page in a real browser, against a real server with live sandboxes.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import test, { after, afterEach, before } from "node:test";
import { chromium } from "playwright-core";
import { registry } from "./registry.mjs";
import { Server } from "./server.mjs";

const KEY = "sk-page-0123456789abcdef";
const CHROMIUM = "/usr/bin/chromium";
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** Refusals that a test provokes show up in the console as well. */
const EXPECTED = /Failed to load resource: the server responded with a status of (400|401|404|409)/;

let server, browser, context, page;
const odd = [];
const foreign = [];

before(async () => {
  server = await Server.start(KEY, ["workspace: {enabled: true}"]);
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
  });
  context = await browser.newContext({ viewport: { width: 1280, height: 800 }, acceptDownloads: true });
  context.setDefaultTimeout(20_000);
  await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: server.url });
  context.on("request", (request) => {
    const { origin, protocol } = new URL(request.url());
    if (origin !== server.url && protocol !== "data:") foreign.push(request.url());
  });
  context.on("page", (opened) => watch(opened));
  page = await context.newPage();
});

after(async () => {
  await browser?.close();
  const left = await server?.stop();
  assert.deepEqual(left, [], "the server's log");
});

afterEach(() => {
  assert.deepEqual(odd.splice(0), [], "the browser's console");
  assert.deepEqual(foreign.splice(0), [], "requests to other servers");
});

function watch(opened) {
  opened.on("console", (message) => {
    if (message.type() === "error" && !EXPECTED.test(message.text())) odd.push(message.text());
  });
  opened.on("pageerror", (error) => odd.push(error.stack));
  opened.on("websocket", (socket) => {
    if (!socket.url().startsWith(server.url.replace("http", "ws"))) foreign.push(socket.url());
  });
}

const heading = (name) => page.getByRole("heading", { level: 1, name });
const button = (name) => page.getByRole("button", { name, exact: true });
const screen = () => page.locator(".terminal-pane:not([hidden]) .xterm-rows");

async function go(hash) {
  await page.goto(`${server.url}/${hash}`);
}

/** Opens a terminal and waits until it can be typed in. */
async function terminal(id) {
  await go(`#/sandboxes/${id}/terminal`);
  await page.getByText("Connected", { exact: true }).waitFor();
  await page.locator(".terminal-pane:not([hidden]) .xterm-helper-textarea").focus();
}

async function shows(text) {
  await page.waitForFunction((wanted) => {
    const rows = document.querySelector(".terminal-pane:not([hidden]) .xterm-rows");
    return rows?.textContent?.replaceAll("\u00a0", " ").includes(wanted);
  }, text);
}

async function accessible(what) {
  // The page's policy forbids added scripts, and should; the checker is put in from outside, where no policy holds.
  const found = await page.evaluate(`(() => { ${axe}; return window.axe.run(document, {
    runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
  }); })()`);
  const told = found.violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html.slice(0, 160)).join(" | ")}`);
  assert.deepEqual(told, [], what);
}

test("w02_without_the_key_the_page_shows_a_door_and_nothing_else", async () => {
  const { id } = await server.create({ name: "secret-name" });
  const calls = [];
  page.on("request", (request) => calls.push(new URL(request.url()).pathname));
  await go("");
  await page.getByLabel("Key of this server").waitFor();
  assert.ok(!(await page.content()).includes("secret-name"));
  await go(`#/sandboxes/${id}/files`);
  await page.getByLabel("Key of this server").waitFor();
  assert.ok(!(await page.content()).includes(id));
  assert.deepEqual(calls.filter((path) => path.startsWith("/v1")), []);
  await accessible("the door");
  await server.clear();
});

test("w03_a_wrong_key_is_refused_and_the_right_one_leaves_no_trace", async () => {
  await go("");
  await page.getByLabel("Key of this server").fill("sk-wrong");
  await button("Log in").click();
  await page.getByText("this is not the key").waitFor();
  await page.getByLabel("Key of this server").fill(KEY);
  await page.keyboard.press("Enter");
  await heading(/./).first().waitFor();
  await go("");
  await heading(/Sandboxes/).waitFor();
  const [cookie] = await context.cookies();
  assert.equal(cookie.name, "sandkasten_dashboard");
  assert.ok(cookie.httpOnly && cookie.sameSite === "Strict" && !cookie.value.includes(KEY));
  const kept = await page.evaluate(() => [document.cookie, ...Object.values(localStorage), ...Object.values(sessionStorage), location.href]);
  assert.ok(!kept.join(" ").includes(KEY) && !kept.join(" ").includes(cookie.value));
});

test("a_sandbox_is_made_and_runs_what_is_typed", async () => {
  await page.getByText("No sandboxes yet").waitFor();
  await button("New sandbox").first().click();
  const dialog = page.getByRole("dialog");
  await dialog.getByRole("textbox", { name: /^Name/ }).fill("first");
  await dialog.getByLabel("Environment").fill("GREETING=hello there\nEMPTY=");
  await dialog.getByLabel("Memory").fill("128");
  await dialog.getByLabel("Time to live").selectOption("1 hour");
  await accessible("the create dialog");
  await button("Make sandbox").click();
  await page.getByText("Connected", { exact: true }).waitFor();
  await page.keyboard.type('echo "$GREETING $((6*7))"\n');
  await shows("hello there 42");
  const [made] = await server.call("GET", "/v1/sessions");
  assert.deepEqual([made.name, made.limits.memory_bytes], ["first", 128 << 20]);
  await accessible("a terminal");
});

test("colours_need_no_inline_style", async () => {
  await page.keyboard.type("printf '\\033[38;2;200;80;20mtrue\\033[1;32mgreen\\033[0m\\n'\n");
  await shows("truegreen");
  const colours = await page.evaluate(() => {
    const spans = [...document.querySelectorAll(".xterm-rows span")];
    const of = (text) => spans.filter((span) => span.textContent === text).map((span) => getComputedStyle(span).color);
    return [of("true")[0], of("green")[0], getComputedStyle(document.querySelector(".xterm-rows")).color];
  });
  assert.equal(new Set(colours).size, 3, colours.join(" "));
});

test("terminals_follow_their_size_and_outlive_the_page", async () => {
  await page.setViewportSize({ width: 900, height: 700 });
  // The size inside follows the one on the page; asked until the two agree.
  const agree = async () => {
    await page.keyboard.type("stty size\n");
    await page.waitForTimeout(150);
    return page.evaluate(() => {
      const rows = [...document.querySelectorAll(".terminal-pane:not([hidden]) .xterm-rows > div")];
      const said = rows.map((row) => row.textContent.trim()).filter((line) => /^\d+ \d+$/.test(line)).at(-1);
      return said !== undefined && Number(said.split(" ")[0]) === rows.length;
    });
  };
  for (let tries = 0; !(await agree()); tries += 1) assert.ok(tries < 40, "the terminal's size is known inside");
  await page.keyboard.type("clear; MARK=kept; echo before-$MARK\n");
  await shows("before-kept");
  await page.setViewportSize({ width: 1280, height: 800 });
  await page.reload();
  await page.getByText("Connected", { exact: true }).waitFor();
  await shows("before-kept");
  await page.keyboard.type("echo again-$MARK\n");
  await shows("again-kept");
  await button("Another terminal").click();
  await button("Terminal 2").and(page.locator("[aria-pressed=true]")).waitFor();
  // Typed at once: what is typed before the terminal is there arrives all the same.
  await page.keyboard.type("exit\n");
  await page.getByText("Ended: the shell has ended").waitFor();
  await button("Close and open a new one").click();
  await shows("again-kept");
});

test("files_go_in_and_come_out_unchanged", async () => {
  const [{ id }] = await server.call("GET", "/v1/sessions");
  const content = Buffer.from(Array.from({ length: 300_000 }, (_, index) => (index * 7919) >> 5 & 255));
  await page.getByRole("tab", { name: "Files" }).click();
  await page.getByText("Nothing here").waitFor();
  await button("New folder").click();
  await page.getByRole("dialog").getByLabel("Name").fill("data");
  await button("Make folder").click();
  await button("data").click();
  await page.getByLabel("Files to upload").setInputFiles([
    { name: "binary.bin", mimeType: "application/octet-stream", buffer: content },
    { name: "empty.txt", mimeType: "text/plain", buffer: Buffer.alloc(0) },
  ]);
  await page.getByRole("row", { name: /binary\.bin/ }).waitFor();
  assert.equal((await server.exec(id, "sha256sum <data/binary.bin")).slice(0, 64), createHash("sha256").update(content).digest("hex"));
  assert.equal(await server.exec(id, "stat -c %s data/empty.txt"), "0\n");
  const coming = page.waitForEvent("download");
  await page.getByRole("link", { name: "Download binary.bin" }).click();
  const download = await coming;
  assert.equal(download.suggestedFilename(), "binary.bin");
  assert.ok(content.equals(await readFile(await download.path())));
  await accessible("files");
  await button("Delete binary.bin").click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
  await page.getByRole("row", { name: /binary\.bin/ }).waitFor({ state: "detached" });
  assert.equal(await server.exec(id, "ls data"), "empty.txt\n");
  await button("/workspace").click();
  await button("data").waitFor();
});

test("dropped_folders_are_uploaded_whole", async () => {
  const [{ id }] = await server.call("GET", "/v1/sessions");
  const data = await page.evaluateHandle(() => {
    const transfer = new DataTransfer();
    transfer.items.add(new File(["dropped"], "dropped.txt"));
    return transfer;
  });
  await page.locator(".files").dispatchEvent("dragover", { dataTransfer: data });
  await page.locator(".files.over").waitFor();
  await page.locator(".files").dispatchEvent("drop", { dataTransfer: data });
  await page.getByRole("row", { name: /dropped\.txt/ }).waitFor();
  assert.equal(await server.exec(id, "cat dropped.txt"), "dropped");
});

test("hostile_names_are_text", async () => {
  const markup = '<img src=x onerror="window.injected=1">';
  const { id } = await server.create({ labels: { [`<script>`]: markup } });
  await server.exec(id, `touch '${markup}' "$(printf 'a\\nb')" "$(printf 'x\\342\\200\\256gnp.exe')" '<script>window.injected=2<'; mkdir '"><svg onload=alert(1)>'; echo '<script>window.injected=3;fetch("/v1/sessions",{method:"DELETE"})</script>' >page.html; printf '${markup}\\n'`);
  await go("#/sandboxes");
  await page.getByRole("row", { name: /onerror/ }).waitFor();
  await page.getByRole("link", { name: id }).click();
  await page.getByRole("tab", { name: "Files" }).click();
  await page.getByRole("row", { name: markup }).waitFor();
  await page.getByRole("row", { name: "x\ufffdgnp.exe" }).waitFor();
  await page.getByRole("row", { name: "a\ufffdb" }).waitFor();
  await button('"><svg onload=alert(1)>').click();
  await page.getByText("Nothing here").waitFor();
  await page.getByRole("tab", { name: "Logs" }).click();
  await page.getByRole("log").getByText("onerror").waitFor();
  await page.getByRole("tab", { name: "Details" }).click();
  await page.getByText(markup).first().waitFor();
  const found = await page.evaluate(() => [window.injected, document.querySelectorAll("#page img, #page script, #page svg[onload]").length]);
  assert.deepEqual(found, [undefined, 0]);
  // A file that is a page: the browser keeps it and does not show it.
  for (const address of [`/v1/sessions/${id}/fs/raw?path=page.html`, `/v1/sessions/${id}/toolbox/files/download?path=/workspace/page.html`]) {
    const answer = await context.request.get(server.url + address);
    const headers = answer.headers();
    assert.equal(answer.status(), 200);
    assert.equal(headers["x-content-type-options"], "nosniff");
    assert.match(headers["content-security-policy"], /default-src 'none'.*sandbox/);
    assert.match(headers["content-disposition"], /^attachment/);
    assert.doesNotMatch(headers["content-type"], /html/);
  }
});

test("hostile_output_is_painted_and_nothing_more", async () => {
  const { id } = await server.create();
  await terminal(id);
  await page.evaluate(() => navigator.clipboard.writeText("mine"));
  await page.locator(".terminal-pane:not([hidden]) .xterm-helper-textarea").focus();
  const opened = [];
  context.on("page", (other) => opened.push(other));
  const title = "<img src=x onerror=window.injected=4>";
  const sequences = [
    `\\033]0;${title}\\007`,
    "\\033]52;c;aGFja2Vk\\007",
    "\\033]8;;javascript:window.injected=5\\007bad-link\\033]8;;\\007 ",
    "\\033]8;;https://example.invalid/x\\007good-link\\033]8;;\\007 ",
    "\\033]1337;File=inline=1:AAAA\\007\\033[8;10;10t\\033[21t",
  ];
  await page.keyboard.type(`printf '${sequences.join("")}'; echo do''ne\n`);
  await shows("done");
  await button(`1: ${title}`).waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "mine");
  for (const link of ["bad-link", "good-link"]) {
    // The terminal itself finds out what is beneath the pointer.
    await screen().getByText(link, { exact: true }).last().waitFor();
    const [x, y] = await page.evaluate((text) => {
      const spans = [...document.querySelectorAll(".terminal-pane:not([hidden]) .xterm-rows span")];
      const box = spans.findLast((span) => span.textContent === text).getBoundingClientRect();
      return [box.x + box.width / 2, box.y + box.height / 2];
    }, link);
    await page.mouse.move(x, y, { steps: 4 });
    await page.mouse.click(x, y);
  }
  const question = page.getByRole("dialog", { name: "Leave for another site?" });
  await question.getByText("https://example.invalid/x").waitFor();
  await question.getByRole("button", { name: "Cancel" }).click();
  assert.deepEqual([opened.length, await page.evaluate(() => window.injected)], [0, undefined]);
  assert.ok(!(await page.title()).includes("onerror"));
});

test("output_is_followed_as_it_comes", async () => {
  const { id } = await server.create({ entrypoint: ["/bin/sh", "-c", "echo started; read x </dev/null; sleep 1000"] });
  await go(`#/sandboxes/${id}/logs`);
  await page.getByRole("log", { name: "Start command" }).getByText("started").waitFor();
  await page.getByLabel("Output of").selectOption("Shell of the API");
  await server.exec(id, "printf '\\033[31mfirst\\033[0m line\\n'");
  await page.getByRole("log").getByText("first line", { exact: false }).waitFor();
  await server.exec(id, "echo second");
  await page.getByRole("log").getByText("second").waitFor();
  await accessible("logs");
});

test("the_list_is_live_and_can_be_searched", async () => {
  await go("#/sandboxes");
  const { id } = await server.create({ name: "late-comer", labels: { team: "blue" } });
  const row = page.getByRole("row", { name: /late-comer/ });
  await row.waitFor();
  await row.getByRole("button", { name: "Pause late-comer" }).click();
  await row.getByText("Paused").waitFor();
  assert.equal((await server.call("GET", `/v1/sessions/${id}`)).status, "paused");
  await row.getByRole("button", { name: "Resume late-comer" }).click();
  await row.getByText("Running").waitFor();
  await row.getByRole("img", { name: /Memory use [\d.]+ [KM]iB/ }).waitFor();
  await page.getByLabel("Search sandboxes").fill("team=blue");
  await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 1);
  await page.getByLabel("Search sandboxes").fill("no such thing");
  await page.getByText("Nothing found").waitFor();
  await button("Clear the search").click();
  await accessible("the list");
  await server.call("DELETE", `/v1/sessions/${id}`);
  await row.waitFor({ state: "detached" });
});

test("w09_a_workspace_that_is_a_path_is_refused", async () => {
  await button("New sandbox").first().click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Workspace").fill("../../victim");
  await button("Make sandbox").click();
  assert.ok(await dialog.getByLabel("Workspace").evaluate((field) => !field.checkValidity()));
  // The server does not rely on the page.
  await dialog.getByLabel("Workspace").evaluate((field) => field.removeAttribute("pattern"));
  await button("Make sandbox").click();
  await dialog.getByText("workspace_id must contain only lowercase letters").waitFor();
  await page.keyboard.press("Escape");
});

test("w32_several_are_selected_and_destroyed", async () => {
  const kept = await server.create({ name: "kept" });
  await Promise.all(["one", "two", "three"].map((name) => server.create({ name: `bulk-${name}` })));
  for (const name of ["one", "two", "three"]) await page.getByLabel(`Select bulk-${name}`).check();
  await page.getByText("3 selected").waitFor();
  await button("Destroy selected").click();
  await page.getByRole("dialog", { name: "Destroy 3 sandboxes?" }).getByRole("button", { name: "Destroy" }).click();
  await page.getByText("3 sandboxes destroyed").waitFor();
  const names = (await server.call("GET", "/v1/sessions")).map(({ name }) => name);
  assert.ok(names.includes("kept") && !names.some((name) => name?.startsWith("bulk-")), names.join(" "));
  await server.call("DELETE", `/v1/sessions/${kept.id}`);
});

test("images_are_listed", async () => {
  await page.getByRole("navigation", { name: "Main" }).getByRole("link", { name: "Images" }).click();
  await heading(/Images/).waitFor();
  await page.getByRole("row", { name: /^host / }).waitFor();
  await accessible("images");
});

test("images_are_pulled_with_progress_and_removed", async () => {
  const { reference, release, close } = await registry();
  await button("Pull image").click();
  const dialog = page.getByRole("dialog", { name: "Pull an image" });
  await dialog.getByLabel("Image in its registry").fill("127.0.0.1:1/nothing");
  await button("Pull").click();
  await dialog.getByRole("alert").getByText(/./).waitFor();
  await dialog.getByLabel("Image in its registry").fill(reference);
  await button("Pull").click();
  await dialog.getByText(/0 of 1 layers, \d+ KiB of \d+ KiB/).waitFor();
  await accessible("a pull");
  release();
  await page.getByText("tiny pulled").waitFor();
  const row = page.getByRole("row", { name: /^tiny / });
  await row.getByRole("button", { name: "Remove tiny" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Remove" }).click();
  await page.getByText("tiny removed").waitFor();
  await row.waitFor({ state: "detached" });
  close();
});

test("workspaces_are_browsed_and_deleted", async () => {
  const { id } = await server.create({ workspace_id: "shared-notes" });
  await server.exec(id, "mkdir -p a/b && echo note >a/b/note.txt");
  await page.getByRole("navigation", { name: "Main" }).getByRole("link", { name: "Workspaces" }).click();
  await page.getByRole("link", { name: "shared-notes" }).click();
  await button("a").click();
  await button("b").click();
  await page.getByLabel("Files to upload").setInputFiles({ name: "up.txt", mimeType: "text/plain", buffer: Buffer.from("up") });
  await page.getByRole("row", { name: /up\.txt/ }).waitFor();
  assert.equal(await server.exec(id, "cat a/b/up.txt"), "up");
  const coming = page.waitForEvent("download");
  await page.getByRole("link", { name: "Download note.txt" }).click();
  assert.equal(await readFile(await (await coming).path(), "utf8"), "note\n");
  await accessible("a workspace");
  await server.call("DELETE", `/v1/sessions/${id}`);
  await button("Delete").click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
  await page.getByText("Workspace shared-notes deleted").waitFor();
  assert.deepEqual((await server.call("GET", "/v1/workspaces")).workspaces, []);
});

test("everything_can_be_done_with_keys_alone", async () => {
  await server.clear();
  await go("#/sandboxes");
  await page.getByText("No sandboxes yet").waitFor();
  const keys = (...pressed) => pressed.reduce((before, key) => before.then(() => page.keyboard.press(key)), Promise.resolve());
  await keys("n");
  await page.getByRole("dialog", { name: "New sandbox" }).waitFor();
  await keys("Tab");
  await page.keyboard.type("by-keys");
  await keys("Enter");
  await page.getByText("Connected", { exact: true }).waitFor();
  await page.keyboard.type("echo typed-$((1+1))\n");
  await shows("typed-2");
  await keys("Control+F6");
  assert.equal(await page.evaluate(() => document.activeElement.id), "tab-terminal");
  await keys("ArrowRight");
  await page.getByText("Nothing here").waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), "tab-files");
  await keys("g", "s", "?");
  await page.getByRole("dialog", { name: "Keyboard shortcuts" }).waitFor();
  await accessible("the shortcuts");
  await keys("Escape", "j", "x");
  await page.getByText("1 selected").waitFor();
  await button("Destroy selected").focus();
  await keys("Enter");
  await page.getByRole("dialog", { name: "Destroy by-keys?" }).waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Cancel", "the harmless answer comes first");
  await keys("Tab", "Enter");
  await page.getByText("No sandboxes yet").waitFor();
  assert.deepEqual(await server.call("GET", "/v1/sessions"), []);
});

test("dark_colours_and_small_screens_are_as_good", async () => {
  await server.create({ name: "a-name-that-is-rather-long-for-a-small-screen", labels: { purpose: "looking at it" } });
  await button("Theme: system").click();
  await button("Theme: light").click();
  await page.setViewportSize({ width: 360, height: 740 });
  await page.emulateMedia({ reducedMotion: "reduce" });
  await page.getByText("Running", { exact: true }).waitFor();
  await accessible("the list, dark and narrow");
  const wide = () => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(await wide(), 0, "the list");
  await page.getByRole("link", { name: /a-name/ }).click();
  await page.getByText("Connected", { exact: true }).waitFor();
  assert.equal(await wide(), 0, "a sandbox");
  await page.getByRole("tab", { name: "Details" }).click();
  await accessible("details, dark and narrow");
  assert.equal(await wide(), 0, "details");
  await page.setViewportSize({ width: 1280, height: 800 });
});

test("a_sandbox_can_be_made_to_live_longer", async () => {
  const { id, expires_at } = await server.create({ ttl_seconds: 300 });
  await go(`#/sandboxes/${id}/details`);
  await button("+ 1 h").click();
  await page.getByText(`${id} lives longer`).waitFor();
  const later = (await server.call("GET", `/v1/sessions/${id}`)).expires_at;
  assert.ok(Date.parse(later) - Date.parse(expires_at) > 3_000_000, later);
});

test("a_sandbox_that_never_was_is_said_to_be_none", async () => {
  await go("#/sandboxes/00000000-000/terminal");
  await page.getByText("There is no such sandbox").waitFor();
});

test("logging_out_ends_it_everywhere", async () => {
  const [cookie] = await context.cookies();
  const other = await context.newPage();
  await other.goto(server.url);
  await other.getByRole("heading", { name: /Sandboxes/ }).waitFor();
  await button("Log out").click();
  await page.getByLabel("Key of this server").waitFor();
  await other.getByLabel("Key of this server").waitFor();
  const headers = { cookie: `${cookie.name}=${cookie.value}` };
  assert.equal((await fetch(`${server.url}/v1/sessions`, { headers })).status, 401);
  await other.close();
});
