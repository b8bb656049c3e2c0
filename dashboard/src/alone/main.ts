/**
 * The terminal that an agent serves on a port of its own: the whole page is one shell, and its end is the page's. What a
 * program prints gets no clipboard, no window and no link.
 */

import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import "@xterm/xterm/css/xterm.css";
import { withoutInlineStyles } from "../terminal/document";
import "./style.css";

withoutInlineStyles();

const FONT = "ui-monospace, 'SF Mono', 'Cascadia Mono', 'JetBrains Mono', 'DejaVu Sans Mono', Menlo, Consolas, monospace";

/** Most characters of one message; the agent takes 64 KiB, and a character is at most three bytes of one. */
const MESSAGE_CHARS_MAX = 16 * 1024;

function socketAddress(): string {
  const address = new URL("ws", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  address.search = "";
  return address.href;
}

function open(place: HTMLElement): void {
  const terminal = new Terminal({
    cursorBlink: !matchMedia("(prefers-reduced-motion: reduce)").matches,
    fontFamily: FONT,
    fontSize: 14,
    scrollback: 5000,
    theme: { background: "#161412", foreground: "#e9e3d8" },
    linkHandler: { activate: () => undefined },
  });
  const fitting = new FitAddon();
  terminal.loadAddon(fitting);
  terminal.open(place);
  terminal.textarea?.setAttribute("aria-label", "Terminal");
  const socket = new WebSocket(socketAddress());
  const tell = (text: string): void => {
    if (socket.readyState === WebSocket.OPEN) socket.send(text);
  };
  const size = (): void => tell(JSON.stringify({ rows: terminal.rows, cols: terminal.cols }));
  socket.onopen = () => {
    size();
    terminal.focus();
  };
  socket.onmessage = (event: MessageEvent<string>) => terminal.write(event.data);
  socket.onclose = () => terminal.write("\r\n[the shell has ended; reload the page for another]\r\n");
  terminal.onData((text) => {
    for (let at = 0; at < text.length; at += MESSAGE_CHARS_MAX) tell(text.slice(at, at + MESSAGE_CHARS_MAX));
  });
  terminal.onResize(size);
  new ResizeObserver(() => fitting.fit()).observe(place);
  fitting.fit();
}

// The secret came in the address once; a cookie has taken its place.
if (location.search !== "") history.replaceState(null, "", location.pathname);
const place = document.getElementById("terminal");
if (place) open(place);
