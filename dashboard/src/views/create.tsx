/** A new sandbox. Nothing has to be filled in: what is left empty is the server's choice. */

import { useEffect, useId, useRef, useState } from "preact/hooks";
import type { ComponentChildren } from "preact";
import { create } from "../actions";
import { ask, words } from "../api";
import { visible } from "../format";
import { can } from "../session";
import { Button } from "../ui/controls";
import { Dialog } from "../ui/dialog";
import type { CreateSandbox, Image, Sandbox, Workspace } from "../wire";

const LIVES = [
  [0, "The server's default"],
  [300, "5 minutes"],
  [1800, "30 minutes"],
  [3600, "1 hour"],
  [28_800, "8 hours"],
  [86_400, "24 hours"],
] as const;

/** `NAME=value` lines; the error names the line. */
export function parseEnvironment(text: string): Record<string, string> {
  const found: Record<string, string> = {};
  for (const [index, line] of text.split("\n").entries()) {
    if (line.trim() === "") continue;
    const at = line.indexOf("=");
    if (at < 1) throw new Error(`line ${index + 1} of the environment is not NAME=value`);
    found[line.slice(0, at).trim()] = line.slice(at + 1);
  }
  return found;
}

function read(form: HTMLFormElement): CreateSandbox {
  const fields = new FormData(form);
  const text = (name: string): string => {
    const value = fields.get(name);
    return typeof value === "string" ? value.trim() : "";
  };
  const wanted: CreateSandbox = {};
  if (text("name") !== "") wanted.name = text("name");
  if (text("image") !== "") wanted.image = text("image");
  if (text("workspace_id") !== "") wanted.workspace_id = text("workspace_id");
  for (const name of ["ttl_seconds", "cpus", "memory_mb", "pids", "disk_mb"] as const) {
    const value = Number(text(name));
    if (value > 0) wanted[name] = value;
  }
  const network = text("network");
  if (network === "allow") wanted.network = { allow: text("allow").split(/[\s,]+/).filter(Boolean) };
  else if (network !== "") wanted.network = network;
  const env = fields.get("env");
  if (typeof env === "string" && env.trim() !== "") wanted.env = parseEnvironment(env);
  return wanted;
}

interface FieldProps {
  label: string;
  hint?: string;
  children: (id: string) => ComponentChildren;
}

function Field({ label, hint, children }: FieldProps) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>
        {label} {hint !== undefined && <span class="hint">{hint}</span>}
      </label>
      {children(id)}
    </div>
  );
}

interface CreateDialogProps {
  onClose: () => void;
  onMade: (made: Sandbox) => void;
}

export function CreateDialog({ onClose, onMade }: CreateDialogProps) {
  const form = useRef<HTMLFormElement>(null);
  const [images, setImages] = useState<readonly Image[]>([]);
  const [workspaces, setWorkspaces] = useState<readonly Workspace[]>([]);
  const [network, setNetwork] = useState("");
  const [trouble, setTrouble] = useState<string>();
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    ask<{ images: Image[] }>("/v1/images").then(
      (list) => setImages(list.images),
      (error: unknown) => setTrouble(words(error)),
    );
    if (can("workspaces")) {
      ask<{ workspaces: Workspace[] }>("/v1/workspaces").then(
        (list) => setWorkspaces(list.workspaces),
        (error: unknown) => setTrouble(words(error)),
      );
    }
  }, []);
  const submit = async (): Promise<void> => {
    if (!form.current || busy) return;
    setTrouble(undefined);
    setBusy(true);
    try {
      const made = await create(read(form.current));
      onClose();
      onMade(made);
    } catch (error) {
      setTrouble(words(error));
      setBusy(false);
    }
  };
  return (
    <Dialog title="New sandbox" wide onClose={onClose}>
      <form
        ref={form}
        class="fields"
        onSubmit={(event) => {
          event.preventDefault();
          void submit();
        }}
      >
        <Field label="Image">
          {(id) => (
            <select id={id} name="image" autofocus>
              <option value="">The server's default</option>
              {images.map((image) => (
                <option key={image.name} value={image.name}>
                  {visible(image.name)}
                </option>
              ))}
            </select>
          )}
        </Field>
        <Field label="Name" hint="optional">
          {(id) => <input id={id} name="name" autocomplete="off" spellcheck={false} />}
        </Field>
        <Field label="Time to live" hint="after the last use">
          {(id) => (
            <select id={id} name="ttl_seconds">
              {LIVES.map(([seconds, label]) => (
                <option key={seconds} value={seconds}>
                  {label}
                </option>
              ))}
            </select>
          )}
        </Field>
        {can("workspaces") && (
          <Field label="Workspace" hint="kept when the sandbox goes">
            {(id) => (
              <>
                <input
                  id={id}
                  name="workspace_id"
                  list={`${id}-known`}
                  autocomplete="off"
                  spellcheck={false}
                  pattern="[a-z0-9][a-z0-9\-]*[a-z0-9]"
                  minLength={2}
                  maxLength={64}
                  title="lowercase letters, numbers and hyphens"
                />
                <datalist id={`${id}-known`}>
                  {workspaces.map((workspace) => (
                    <option key={workspace.id} value={workspace.id} />
                  ))}
                </datalist>
              </>
            )}
          </Field>
        )}
        {can("bridge") && (
          <Field label="Network">
            {(id) => (
              <select id={id} name="network" value={network} onChange={(event) => setNetwork(event.currentTarget.value)}>
                <option value="">The server's default</option>
                <option value="none">None: only its own loopback</option>
                <option value="bridge">Internet: public addresses</option>
                <option value="allow">Only these networks …</option>
              </select>
            )}
          </Field>
        )}
        {network === "allow" && (
          <Field label="Networks" hint="ADDRESS/BITS, separated by spaces">
            {(id) => <input id={id} name="allow" required spellcheck={false} placeholder="203.0.113.0/24" />}
          </Field>
        )}
        <fieldset>
          <legend>
            Limits <span class="hint">empty: the server's defaults</span>
          </legend>
          <Field label="Processors">
            {(id) => <input id={id} name="cpus" type="number" min="0.1" max="4096" step="0.1" inputMode="decimal" />}
          </Field>
          <Field label="Memory" hint="MiB">
            {(id) => <input id={id} name="memory_mb" type="number" min="16" step="1" />}
          </Field>
          <Field label="Processes">{(id) => <input id={id} name="pids" type="number" min="4" step="1" />}</Field>
          <Field label="Disk" hint="MiB">
            {(id) => <input id={id} name="disk_mb" type="number" min="8" step="1" />}
          </Field>
        </fieldset>
        <div class="field across">
          <Field label="Environment" hint="one NAME=value per line">
            {(id) => <textarea id={id} name="env" rows={3} spellcheck={false} autocomplete="off" />}
          </Field>
        </div>
        <p class="field-trouble across" role="alert">
          {trouble}
        </p>
        <footer class="across">
          <Button onClick={onClose}>Cancel</Button>
          <Button kind="primary" type="submit" disabled={busy}>
            {busy ? "Making …" : "Make sandbox"}
          </Button>
        </footer>
      </form>
    </Dialog>
  );
}
