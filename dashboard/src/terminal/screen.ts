/**
 * The terminal on the page. What a program prints is hostile until proven otherwise: it can paint cells, set a title,
 * and name links. It gets no clipboard, no window, no file, and no way to be asked twice.
 */

import { FitAddon } from "@xterm/addon-fit";
import { type ILink, type ITheme, Terminal } from "@xterm/xterm";
import "@xterm/xterm/css/xterm.css";
import { confirm } from "../ui/dialog";
import { withoutInlineStyles } from "./document";

withoutInlineStyles();

/** Lines kept above the screen. */
const SCROLLBACK_LINES = 5000;

const FONT = "ui-monospace, 'SF Mono', 'Cascadia Mono', 'JetBrains Mono', 'DejaVu Sans Mono', Menlo, Consolas, monospace";

const LIGHT: ITheme = {
  background: "#fffdfa",
  foreground: "#2b2722",
  cursor: "#8f4f1b",
  cursorAccent: "#fffdfa",
  selectionBackground: "#ecd9c2",
  black: "#2b2722",
  red: "#b3261e",
  green: "#2f6f3e",
  yellow: "#8a5a00",
  blue: "#1f5fa8",
  magenta: "#8b3a8f",
  cyan: "#0f6f78",
  white: "#8c857b",
  brightBlack: "#6b645a",
  brightRed: "#c8372d",
  brightGreen: "#3a8450",
  brightYellow: "#9c6a08",
  brightBlue: "#2f73c4",
  brightMagenta: "#a04aa5",
  brightCyan: "#17828c",
  brightWhite: "#4a443c",
};

const DARK: ITheme = {
  background: "#161412",
  foreground: "#e9e3d8",
  cursor: "#e6a561",
  cursorAccent: "#161412",
  selectionBackground: "#4a3b2a",
  black: "#3a352f",
  red: "#f2857b",
  green: "#8fc79a",
  yellow: "#e3bd6a",
  blue: "#8db8ee",
  magenta: "#d39bd6",
  cyan: "#7fcbd2",
  white: "#cfc8bc",
  brightBlack: "#857d71",
  brightRed: "#ffa198",
  brightGreen: "#a9deb3",
  brightYellow: "#f5d48a",
  brightBlue: "#aacdf8",
  brightMagenta: "#e6b8e8",
  brightCyan: "#a0e2e8",
  brightWhite: "#fbf7ef",
};

/** Addresses that a link may have. */
const LINK_SCHEMES = ["http:", "https:"];

/** Follows a link that a program printed, once the reader has seen where it really leads. */
async function follow(text: string): Promise<void> {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    return;
  }
  if (!LINK_SCHEMES.includes(url.protocol)) return;
  const yes = await confirm({
    title: "Leave for another site?",
    text: `A program in the sandbox printed this link. It leads to: ${url.href}`,
    action: "Open",
    kind: "primary",
  });
  if (yes) window.open(url.href, "_blank", "noopener,noreferrer");
}

export interface Screen {
  readonly terminal: Terminal;
  /** Fits the terminal to its place. */
  fit: () => void;
  dispose: () => void;
}

export interface ScreenEvents {
  typed: (text: string) => void;
  bytes: (text: string) => void;
  resized: (cols: number, rows: number) => void;
  title: (text: string) => void;
  /** The reader wants out of the terminal by keyboard. */
  leave: () => void;
}

export function open(place: HTMLElement, label: string, events: ScreenEvents): Screen {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const colours = (): ITheme => {
    const chosen = document.documentElement.dataset["theme"];
    return chosen === "dark" || (chosen === undefined && dark.matches) ? DARK : LIGHT;
  };
  const terminal = new Terminal({
    cursorBlink: !still.matches,
    fontFamily: FONT,
    fontSize: 13.5,
    lineHeight: 1.25,
    scrollback: SCROLLBACK_LINES,
    theme: colours(),
    minimumContrastRatio: 4.5,
    linkHandler: {
      activate: (_event: MouseEvent, text: ILink["text"]) => void follow(text),
      allowNonHttpProtocols: false,
    },
  });
  const fitting = new FitAddon();
  terminal.loadAddon(fitting);
  terminal.open(place);
  terminal.textarea?.setAttribute("aria-label", label);
  terminal.onData(events.typed);
  terminal.onBinary(events.bytes);
  terminal.onResize(({ cols, rows }) => events.resized(cols, rows));
  terminal.onTitleChange(events.title);
  terminal.attachCustomKeyEventHandler((event) => {
    if (event.key !== "F6" || !event.ctrlKey) return true;
    event.preventDefault();
    if (event.type === "keydown") events.leave();
    return false;
  });
  const fit = (): void => {
    if (place.clientWidth > 0 && place.clientHeight > 0) fitting.fit();
  };
  const recolour = (): void => {
    terminal.options.theme = colours();
  };
  const themes = new MutationObserver(recolour);
  themes.observe(document.documentElement, { attributeFilter: ["data-theme"] });
  dark.addEventListener("change", recolour);
  const sizes = new ResizeObserver(fit);
  sizes.observe(place);
  fit();
  return {
    terminal,
    fit,
    dispose: () => {
      sizes.disconnect();
      themes.disconnect();
      dark.removeEventListener("change", recolour);
      terminal.dispose();
    },
  };
}
