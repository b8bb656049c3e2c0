/** An image from a registry. */

import { useEffect, useRef, useState } from "preact/hooks";
import { isAbort, send, words } from "../api";
import { events } from "../events";
import { bytes, visible } from "../format";
import { Button } from "../ui/controls";
import { Dialog } from "../ui/dialog";
import { said } from "../ui/notice";
import type { Image, PullProgress } from "../wire";

interface Wanted {
  reference: string;
  name?: string;
  username?: string;
  password?: string;
}

function read(form: HTMLFormElement): Wanted {
  const fields = new FormData(form);
  const wanted: Wanted = { reference: "" };
  for (const name of ["reference", "name", "username", "password"] as const) {
    const value = fields.get(name);
    if (typeof value === "string" && value.trim() !== "") wanted[name] = value.trim();
  }
  return wanted;
}

export function PullDialog({ onClose, onPulled }: { onClose: () => void; onPulled: () => void }) {
  const form = useRef<HTMLFormElement>(null);
  const asking = useRef<AbortController>();
  const [progress, setProgress] = useState<PullProgress>();
  const [trouble, setTrouble] = useState<string>();
  const [busy, setBusy] = useState(false);
  useEffect(() => () => asking.current?.abort(), []);

  const submit = async (): Promise<void> => {
    if (!form.current || busy) return;
    const stop = new AbortController();
    asking.current = stop;
    setBusy(true);
    setTrouble(undefined);
    setProgress(undefined);
    try {
      const response = await send("/v1/images/pull", { method: "POST", json: read(form.current), signal: stop.signal });
      for await (const { name, data } of events(response)) {
        if (name === "progress") setProgress(data as PullProgress);
        else if (name === "error") throw new Error((data as { error: string }).error);
        else if (name === "done") {
          said(`${visible((data as Image).name)} pulled`);
          onPulled();
          onClose();
          return;
        }
      }
      throw new Error("the connection broke; the server goes on by itself");
    } catch (error) {
      if (isAbort(error)) return;
      setTrouble(words(error));
      setBusy(false);
    }
  };
  return (
    <Dialog title="Pull an image" onClose={onClose}>
      <form
        ref={form}
        class="fields one"
        onSubmit={(event) => {
          event.preventDefault();
          void submit();
        }}
      >
        <div class="field">
          <label for="pull-reference">
            Image in its registry <span class="hint">such as python:3.12-slim</span>
          </label>
          <input id="pull-reference" name="reference" required autofocus autocomplete="off" spellcheck={false} />
        </div>
        <div class="field">
          <label for="pull-name">
            Name here <span class="hint">empty: the last part of the above</span>
          </label>
          <input id="pull-name" name="name" autocomplete="off" spellcheck={false} />
        </div>
        <details>
          <summary>The registry wants a login</summary>
          <div class="fields">
            <div class="field">
              <label for="pull-user">User</label>
              <input id="pull-user" name="username" autocomplete="off" spellcheck={false} />
            </div>
            <div class="field">
              <label for="pull-password">Password or token</label>
              <input id="pull-password" name="password" type="password" autocomplete="off" />
            </div>
          </div>
        </details>
        <div class="pulling">
          {busy && (
            <>
              <progress
                aria-label="Progress of the pull"
                {...(progress && progress.total_bytes > 0 ? { max: progress.total_bytes, value: progress.done_bytes } : {})}
              />
              <span role="status">
                {progress && progress.layers > 0
                  ? `${progress.layers_done} of ${progress.layers} layers, ${bytes(progress.done_bytes)} of ${bytes(progress.total_bytes)}`
                  : "Asking the registry …"}
              </span>
            </>
          )}
          <p class="field-trouble" role="alert">
            {trouble}
          </p>
        </div>
        <footer>
          <Button onClick={onClose}>{busy ? "Close, and let it go on" : "Cancel"}</Button>
          <Button kind="primary" type="submit" disabled={busy}>
            Pull
          </Button>
        </footer>
      </form>
    </Dialog>
  );
}
