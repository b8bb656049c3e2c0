/** All sandboxes, live. */

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { change, changes, destroy, nameOf } from "../actions";
import { bytes, percent, since, until, visible } from "../format";
import { type Usage, watch } from "../live";
import { address, go } from "../route";
import { useStore } from "../store";
import { Button, Nothing, State, stateWord, Waiting } from "../ui/controls";
import { Icon } from "../ui/icon";
import { useKeys } from "../ui/keys";
import { speak } from "../ui/notice";
import { Sparkline } from "../ui/sparkline";
import type { Sandbox } from "../wire";
import { CreateDialog } from "./create";

/** Samples that a graph has room for. */
const ROOM = 60;

/** What the top of a processor graph stands for, unless more is used: a tenth of one. */
const CPU_TOP = 0.1;

/** Rows shown at first; more on demand, so that a thousand sandboxes do not make the page slow. */
const ROWS = 100;

const ICONS = { pause: "pause", resume: "play", stop: "stop", start: "play" } as const;
const WORDS = { pause: "Pause", resume: "Resume", stop: "Stop", start: "Start" } as const;

function matches(sandbox: Sandbox, words: readonly string[]): boolean {
  const labels = Object.entries(sandbox.labels ?? {}).map(([name, value]) => `${name}=${value}`);
  const text = [sandbox.id, sandbox.name, sandbox.image, sandbox.status, stateWord(sandbox.status), sandbox.workspace_id, ...labels]
    .join(" ")
    .toLowerCase();
  return words.every((word) => text.includes(word));
}

export function SandboxesView() {
  const { sandboxes, usage, now } = useStore(watch.live);
  const [search, setSearch] = useState("");
  const [creating, setCreating] = useState(false);
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  const [rows, setRows] = useState(ROWS);
  const field = useRef<HTMLInputElement>(null);
  const body = useRef<HTMLTableSectionElement>(null);

  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const found = useMemo(() => sandboxes?.filter((sandbox) => matches(sandbox, words)), [sandboxes, search]);
  const chosen = useMemo(() => found?.filter((sandbox) => selected.has(sandbox.id)) ?? [], [found, selected]);
  useChangesSpoken(sandboxes);

  const toggle = (ids: readonly string[], on: boolean): void => {
    const next = new Set(selected);
    for (const id of ids) if (on) next.add(id);
    else next.delete(id);
    setSelected(next);
  };
  const step = (by: number): void => {
    const links = [...(body.current?.querySelectorAll<HTMLAnchorElement>("a.row-link") ?? [])];
    const row = document.activeElement?.closest("tr");
    const at = links.findIndex((link) => link.closest("tr") === row);
    links[at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + by))]?.focus();
  };
  useKeys({
    n: () => setCreating(true),
    "/": () => field.current?.focus(),
    j: () => step(1),
    k: () => step(-1),
    x: () => {
      const id = document.activeElement?.closest("tr")?.dataset["id"];
      if (id !== undefined) toggle([id], !selected.has(id));
    },
  });

  const all = found !== undefined && found.length > 0 && chosen.length === found.length;
  return (
    <div class="view">
      <div class="view-head">
        <h1>
          Sandboxes <span class="count">{sandboxes?.length ?? ""}</span>
        </h1>
        <Button kind="primary" icon="plus" keys="n" onClick={() => setCreating(true)}>
          New sandbox
        </Button>
      </div>
      <div class="bar">
        {chosen.length > 0 ? (
          <div class="selection" role="group" aria-label="Selected sandboxes">
            <span role="status">{chosen.length} selected</span>
            <Button
              kind="danger"
              icon="trash"
              onClick={() => void destroy(chosen).then((done) => done && setSelected(new Set()))}
            >
              Destroy selected
            </Button>
            <Button kind="quiet" onClick={() => setSelected(new Set())}>
              Clear
            </Button>
          </div>
        ) : (
          <label class="search">
            <Icon name="search" />
            <span class="unseen">Search sandboxes</span>
            <input
              ref={field}
              type="search"
              placeholder="Search by name, image, state or label"
              value={search}
              aria-keyshortcuts="/"
              onInput={(event) => setSearch(event.currentTarget.value)}
              onKeyDown={(event) => {
                if (event.key !== "Escape") return;
                setSearch("");
                event.currentTarget.blur();
              }}
            />
          </label>
        )}
      </div>
      {!found && <Waiting label="Loading sandboxes" />}
      {sandboxes?.length === 0 && (
        <Nothing icon="sandbox" title="No sandboxes yet">
          <p>Make one here, or with the command line or a client: they all appear in this list.</p>
          <Button kind="primary" icon="plus" onClick={() => setCreating(true)}>
            New sandbox
          </Button>
        </Nothing>
      )}
      {found?.length === 0 && sandboxes !== undefined && sandboxes.length > 0 && (
        <Nothing icon="search" title="Nothing found">
          <p>No sandbox has all of these words.</p>
          <Button onClick={() => setSearch("")}>Clear the search</Button>
        </Nothing>
      )}
      {found && found.length > 0 && (
        <table class="list sandboxes" role="table">
          <caption class="unseen">Sandboxes, newest first</caption>
          <thead role="rowgroup">
            <tr role="row">
              <th role="columnheader" class="tick">
                <input
                  type="checkbox"
                  aria-label="Select all"
                  checked={all}
                  ref={(box) => {
                    if (box) box.indeterminate = chosen.length > 0 && !all;
                  }}
                  onChange={(event) => toggle(found.map((one) => one.id), event.currentTarget.checked)}
                />
              </th>
              <th role="columnheader">Name</th>
              <th role="columnheader">State</th>
              <th role="columnheader">Image</th>
              <th role="columnheader">Processor</th>
              <th role="columnheader">Memory</th>
              <th role="columnheader">Age</th>
              <th role="columnheader">Ends in</th>
              <th role="columnheader">
                <span class="unseen">Actions</span>
              </th>
            </tr>
          </thead>
          <tbody ref={body} role="rowgroup">
            {found.slice(0, rows).map((sandbox) => (
              <Row
                key={sandbox.id}
                sandbox={sandbox}
                usage={usage.get(sandbox.id)}
                now={now}
                selected={selected.has(sandbox.id)}
                select={(on) => toggle([sandbox.id], on)}
              />
            ))}
          </tbody>
        </table>
      )}
      {found && found.length > rows && (
        <p class="more">
          <Button onClick={() => setRows(rows + ROWS)}>{`Show more of ${found.length}`}</Button>
        </p>
      )}
      {creating && (
        <CreateDialog
          onClose={() => setCreating(false)}
          onMade={(made) => go({ place: "sandbox", id: made.id, tab: "terminal" })}
        />
      )}
    </div>
  );
}

interface RowProps {
  sandbox: Sandbox;
  usage: Usage | undefined;
  now: number;
  selected: boolean;
  select: (on: boolean) => void;
}

function Row({ sandbox, usage, now, selected, select }: RowProps) {
  const name = visible(nameOf(sandbox));
  const labels = Object.entries(sandbox.labels ?? {});
  return (
    <tr role="row" data-id={sandbox.id} aria-selected={selected} class={selected ? "selected" : ""}>
      <td role="cell" class="tick">
        <input
          type="checkbox"
          aria-label={`Select ${name}`}
          checked={selected}
          onChange={(event) => select(event.currentTarget.checked)}
        />
      </td>
      <th role="rowheader" scope="row" class="name">
        <a class="row-link" href={address({ place: "sandbox", id: sandbox.id, tab: "terminal" })}>
          <bdi>{name}</bdi>
        </a>
        <span class="under">
          {sandbox.name !== undefined && <code>{sandbox.id}</code>}
          {labels.map(([label, value]) => (
            <span key={label} class="label">
              <bdi>{visible(label)}</bdi>
              {value !== "" && (
                <>
                  =<bdi>{visible(value)}</bdi>
                </>
              )}
            </span>
          ))}
        </span>
      </th>
      <td role="cell" class="state-cell">
        <State status={sandbox.status} />
      </td>
      <td role="cell" data-label="Image">
        <bdi>{visible(sandbox.image)}</bdi>
      </td>
      <td role="cell" data-label="Processor" class="graph">
        <CpuGraph usage={usage} />
      </td>
      <td role="cell" data-label="Memory" class="graph">
        <MemoryGraph usage={usage} />
      </td>
      <td role="cell" data-label="Age" class="number">
        {since(sandbox.created_at, now)}
      </td>
      <td role="cell" data-label="Ends in" class="number">
        {until(sandbox.expires_at, now)}
      </td>
      <td role="cell" class="row-actions">
        {changes(sandbox.status).map((to) => (
          <Button key={to} bare kind="quiet" icon={ICONS[to]} onClick={() => void change(sandbox, to)}>
            {`${WORDS[to]} ${name}`}
          </Button>
        ))}
        <Button bare kind="quiet" icon="trash" onClick={() => void destroy([sandbox])}>
          {`Destroy ${name}`}
        </Button>
      </td>
    </tr>
  );
}

export function CpuGraph({ usage }: { usage: Usage | undefined }) {
  const values = usage?.samples.map((sample) => sample.cpu) ?? [];
  const last = values.at(-1);
  const text = last === undefined ? "–" : percent(last);
  return (
    <>
      <Sparkline values={values} room={ROOM} top={CPU_TOP} label={`Processor use ${text}`} />
      <span class="value">{text}</span>
    </>
  );
}

export function MemoryGraph({ usage }: { usage: Usage | undefined }) {
  const values = usage?.samples.map((sample) => sample.memory) ?? [];
  const last = usage?.last;
  const text = last === undefined ? "–" : bytes(last.memory_bytes);
  // Half of the limit at most, so that an idle sandbox is not a flat line.
  const top = Math.min((last?.memory_limit ?? Infinity) / 2, Math.max(1, ...values) * 2);
  return (
    <>
      <Sparkline values={values} room={ROOM} top={top} label={`Memory use ${text}`} />
      <span class="value">{text}</span>
    </>
  );
}

/** Says aloud which sandboxes came, went, or changed their state. */
function useChangesSpoken(sandboxes: readonly Sandbox[] | undefined): void {
  const before = useRef<ReadonlyMap<string, Sandbox>>();
  useEffect(() => {
    if (!sandboxes) return;
    const now = new Map(sandboxes.map((sandbox) => [sandbox.id, sandbox]));
    const last = before.current;
    before.current = now;
    if (!last) return;
    const news: string[] = [];
    for (const [id, sandbox] of now) {
      const old = last.get(id);
      if (old?.status !== sandbox.status) news.push(`${nameOf(sandbox)} ${stateWord(sandbox.status).toLowerCase()}`);
    }
    for (const [id, sandbox] of last) if (!now.has(id)) news.push(`${nameOf(sandbox)} is gone`);
    if (news.length > 0) speak(news.length > 5 ? `${news.length} sandboxes changed` : news.join(", "));
  }, [sandboxes]);
}
