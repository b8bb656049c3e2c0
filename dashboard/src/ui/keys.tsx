/** Shortcuts. They stand still while somebody types, in terminals, and behind dialogs. */

import { useEffect } from "preact/hooks";
import { Dialog } from "./dialog";

const TYPING = "input, textarea, select, [contenteditable], .xterm";

/** How long the second key of a pair may take. */
const PAIR_MS = 1200;

let first: { key: string; at: number } | undefined;

/** Runs what belongs to a key, or to a pair of keys such as `g s`. */
export function useKeys(keys: Readonly<Record<string, () => void>>): void {
  useEffect(() => {
    const pressed = (event: KeyboardEvent): void => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || event.repeat) return;
      const target = event.target instanceof Element ? event.target : undefined;
      if (target?.closest(TYPING) || document.querySelector("dialog[open]")) return;
      const pair = first && event.timeStamp - first.at < PAIR_MS ? `${first.key} ${event.key}` : undefined;
      const action = (pair !== undefined ? keys[pair] : undefined) ?? keys[event.key];
      const begins = Object.keys(keys).some((known) => known.startsWith(`${event.key} `));
      if (begins) first = { key: event.key, at: event.timeStamp };
      if (!action) return;
      first = undefined;
      event.preventDefault();
      action();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  });
}

const LIST: readonly (readonly [string, string])[] = [
  ["?", "This list"],
  ["g s", "Sandboxes"],
  ["g i", "Images"],
  ["g w", "Workspaces"],
  ["n", "New sandbox"],
  ["/", "Search the list"],
  ["j  k", "Next, previous row"],
  ["x", "Select the row"],
  ["Enter", "Open the row"],
  ["t", "Light, dark or system colours"],
  ["Ctrl F6", "Leave the terminal"],
];

export function KeysDialog({ onClose, version }: { onClose: () => void; version: string | undefined }) {
  return (
    <Dialog title="Keyboard shortcuts" onClose={onClose}>
      <dl class="keys">
        {LIST.map(([keys, what]) => (
          <div key={keys}>
            <dt>
              {keys.split(/ +/).map((key) => (
                <kbd key={key}>{key}</kbd>
              ))}
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
      <p class="fine">
        Sandhaus {version ?? ""} · <a href="/openapi.json">API description</a> ·{" "}
        <a href="/_app/licences.txt">Licences of included software</a>
      </p>
    </Dialog>
  );
}
