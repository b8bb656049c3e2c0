/** What programs in a sandbox have printed, as it is kept, and as it comes. */

import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, ask, isAbort, path, send, words } from "../api";
import { visible } from "../format";
import { Frames, Plain, settled, withoutMarks } from "../output";
import { Button, Nothing, Trouble } from "../ui/controls";
import type { Sandbox } from "../wire";

/** Characters kept on the page; older ones go. */
const CHARS_MAX = 400_000;

/** How close to the end counts as reading along, in pixels. */
const NEAR_END = 40;

interface Source {
  key: string;
  label: string;
  address: string;
  form: "frames" | "marked";
}

interface Process {
  id: number;
  argv: string[];
}

async function sources(sandbox: string): Promise<readonly Source[]> {
  const toolbox = ["v1", "sessions", sandbox, "toolbox"];
  const found: Source[] = [];
  try {
    await ask(path([...toolbox, "process", "session", "entrypoint"]));
    const address = path([...toolbox, "process", "session", "entrypoint", "logs"], { follow: "true" });
    found.push({ key: "entrypoint", label: "Start command", address, form: "marked" });
  } catch (error) {
    // A sandbox without a start command has no such session.
    if (!(error instanceof ApiError && error.status === 404)) throw error;
  }
  const shell = path([...toolbox, "sandhaus", "shell", "default", "log"], { offset: "0", follow: "true" });
  found.push({ key: "shell", label: "Shell of the API", address: shell, form: "frames" });
  const processes = await ask<Process[]>(path([...toolbox, "sandhaus", "process"]));
  for (const { id, argv } of processes) {
    const address = path([...toolbox, "sandhaus", "process", String(id), "output"]);
    const label = visible(`Process ${id}: ${argv.join(" ")}`).slice(0, 80);
    found.push({ key: `process ${id}`, label, address, form: "frames" });
  }
  return found;
}

export function Logs({ sandbox }: { sandbox: Sandbox }) {
  const [known, setKnown] = useState<readonly Source[]>();
  const [chosen, setChosen] = useState("");
  const [trouble, setTrouble] = useState<string>();
  const look = (): void => {
    setTrouble(undefined);
    sources(sandbox.id).then(setKnown, (error: unknown) => setTrouble(words(error)));
  };
  useEffect(look, [sandbox.id, sandbox.generation]);
  const source = known?.find((one) => one.key === chosen) ?? known?.[0];
  if (trouble !== undefined) return <Trouble again={look}>{trouble}</Trouble>;
  return (
    <div class="logs">
      <div class="bar">
        <label class="inline">
          Output of
          <select value={source?.key ?? ""} onChange={(event) => setChosen(event.currentTarget.value)}>
            {known?.map((one) => (
              <option key={one.key} value={one.key}>
                {one.label}
              </option>
            ))}
          </select>
        </label>
        <div class="bar-actions">
          <Button bare kind="quiet" icon="refresh" onClick={look}>
            Look for more processes
          </Button>
        </div>
      </div>
      {source && <Log key={source.key} source={source} />}
    </div>
  );
}

function Log({ source }: { source: Source }) {
  const [text, setText] = useState("");
  const [state, setState] = useState<"following" | "ended" | "broken">("following");
  const [why, setWhy] = useState("");
  const [attempt, setAttempt] = useState(0);
  const place = useRef<HTMLPreElement>(null);
  const along = useRef(true);

  useEffect(() => {
    const asking = new AbortController();
    let all = "";
    let drawn: number | undefined;
    const draw = (): void => {
      drawn = undefined;
      setText(settled(all));
    };
    const add = (more: string): void => {
      all = (all + more).slice(-CHARS_MAX);
      drawn ??= requestAnimationFrame(draw);
    };
    const follow = async (): Promise<void> => {
      const response = await send(source.address, { signal: asking.signal });
      const reader = response.body?.getReader();
      const frames = new Frames();
      const plain = new Plain();
      for (;;) {
        const read = await reader?.read();
        if (!read || read.done) return;
        if (source.form === "frames") for (const bytes of frames.push(read.value)) add(plain.push(bytes));
        else add(withoutMarks(plain.push(read.value)));
      }
    };
    setText("");
    setState("following");
    follow().then(
      () => setState("ended"),
      (error: unknown) => {
        if (isAbort(error) || asking.signal.aborted) return;
        setState("broken");
        setWhy(words(error));
      },
    );
    return () => {
      asking.abort();
      if (drawn !== undefined) cancelAnimationFrame(drawn);
    };
  }, [source.address, attempt]);

  useEffect(() => {
    if (along.current && place.current) place.current.scrollTop = place.current.scrollHeight;
  }, [text]);

  return (
    <>
      {state === "broken" && <Trouble again={() => setAttempt(attempt + 1)}>{why}</Trouble>}
      {text === "" && state !== "broken" && (
        <Nothing icon="terminal" title="Nothing printed yet">
          <p>{state === "following" ? "Output appears here as it comes." : "It has ended without a word."}</p>
        </Nothing>
      )}
      <pre
        ref={place}
        class="log"
        role="log"
        aria-label={source.label}
        aria-live="off"
        tabIndex={0}
        hidden={text === ""}
        onScroll={(event) => {
          const { scrollHeight, scrollTop, clientHeight } = event.currentTarget;
          along.current = scrollHeight - scrollTop - clientHeight < NEAR_END;
        }}
      >
        {text}
      </pre>
      <p class="fine" role="status">
        {state === "following" ? "Following" : state === "ended" ? "Ended" : ""}
      </p>
    </>
  );
}
