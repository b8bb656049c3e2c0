/** One sandbox. */

import type { ComponentChildren } from "preact";
import { lazy, Suspense } from "preact/compat";
import { useEffect, useRef, useState } from "preact/hooks";
import { change, changes, destroy, extend, nameOf } from "../actions";
import { ApiError, ask, path, words } from "../api";
import { bytes, moment, until, visible } from "../format";
import { watch } from "../live";
import { address, go, type Tab, TABS } from "../route";
import { useStore } from "../store";
import { Button, Nothing, State, Trouble, Waiting } from "../ui/controls";
import { Icon } from "../ui/icon";
import type { Sandbox } from "../wire";
import { Files } from "./files";
import { sandboxFiles } from "./file-source";
import { Logs } from "./logs";
import { CpuGraph, MemoryGraph } from "./sandboxes";

/** The terminal is the largest part of the page, and not every visit needs it. */
const TerminalTab = lazy(() => import("./terminal").then((module) => module.TerminalTab));

const WORDS = { pause: "Pause", resume: "Resume", stop: "Stop", start: "Start" } as const;
const ICONS = { pause: "pause", resume: "play", stop: "stop", start: "play" } as const;
const TAB_WORDS: Record<Tab, string> = { terminal: "Terminal", files: "Files", logs: "Logs", details: "Details" };

/** The sandbox as the list has it, or asked for when it is not in the list: then it has ended, or never was. */
function useSandbox(id: string): { sandbox: Sandbox | undefined; trouble: string | undefined } {
  const { sandboxes } = useStore(watch.live);
  const [asked, setAsked] = useState<Sandbox>();
  const [trouble, setTrouble] = useState<string>();
  const listed = sandboxes?.find((sandbox) => sandbox.id === id);
  const missing = sandboxes !== undefined && listed === undefined;
  useEffect(() => {
    if (!missing) {
      setTrouble(undefined);
      return undefined;
    }
    const asking = new AbortController();
    ask<Sandbox>(path(["v1", "sessions", id]), { signal: asking.signal }).then(setAsked, (error: unknown) => {
      if (error instanceof ApiError) setTrouble(words(error));
    });
    return () => asking.abort();
  }, [missing, id]);
  return { sandbox: listed ?? asked, trouble: listed ? undefined : trouble };
}

export function SandboxView({ id, tab }: { id: string; tab: Tab }) {
  const { sandbox, trouble } = useSandbox(id);
  if (trouble !== undefined) {
    return (
      <div class="view">
        <Nothing icon="sandbox" title="There is no such sandbox">
          <p>{trouble}</p>
          <p>
            <a href={address({ place: "sandboxes" })}>All sandboxes</a>
          </p>
        </Nothing>
      </div>
    );
  }
  if (!sandbox) {
    return (
      <div class="view">
        <Waiting label="Loading the sandbox" />
      </div>
    );
  }
  return <Shown sandbox={sandbox} tab={tab} />;
}

function Shown({ sandbox, tab }: { sandbox: Sandbox; tab: Tab }) {
  const { usage, now } = useStore(watch.live);
  const used = usage.get(sandbox.id);
  const running = sandbox.status === "running";
  const ended = sandbox.status === "destroyed" || sandbox.status === "expired";
  const left = ended ? "–" : until(sandbox.expires_at, now);
  return (
    <div class="view sandbox-view">
      <nav aria-label="Breadcrumb" class="crumbs">
        <a href={address({ place: "sandboxes" })}>Sandboxes</a>
        <Icon name="chevron" />
        <span aria-current="page">
          <bdi>{visible(nameOf(sandbox))}</bdi>
        </span>
      </nav>
      <div class="view-head">
        <h1>
          <bdi>{visible(nameOf(sandbox))}</bdi> <State status={sandbox.status} />
        </h1>
        {!ended && (
          <div class="head-actions">
            {changes(sandbox.status).map((to) => (
              <Button key={to} icon={ICONS[to]} onClick={() => void change(sandbox, to)}>
                {WORDS[to]}
              </Button>
            ))}
            <Button
              kind="danger"
              icon="trash"
              onClick={() => void destroy([sandbox]).then((done) => done && go({ place: "sandboxes" }))}
            >
              Destroy
            </Button>
          </div>
        )}
      </div>
      {sandbox.failure && <Trouble>{visible(sandbox.failure.message)}</Trouble>}
      <dl class="facts">
        <div class="fact graph">
          <dt>Processor</dt>
          <dd>
            <CpuGraph usage={used} />
          </dd>
        </div>
        <div class="fact graph">
          <dt>Memory</dt>
          <dd>
            <MemoryGraph usage={used} />
          </dd>
        </div>
        <div class="fact">
          <dt>Image</dt>
          <dd>
            <bdi>{visible(sandbox.image)}</bdi>
          </dd>
        </div>
        <div class="fact">
          <dt>Ends in</dt>
          <dd>
            {left}
            {!ended && left !== "never" && (
              <Button kind="quiet" onClick={() => void extend(sandbox)}>
                + 1 h
              </Button>
            )}
          </dd>
        </div>
      </dl>
      <Tabs sandbox={sandbox} tab={tab}>
        {tab === "terminal" && (
          <Needs running={running} what="a terminal">
            <Suspense fallback={<Waiting label="Loading the terminal" rows={1} />}>
              <TerminalTab key={sandbox.generation} sandbox={sandbox.id} />
            </Suspense>
          </Needs>
        )}
        {tab === "files" && (
          <Needs running={running} what="its files">
            <Files source={sandboxFiles(sandbox.id)} root="/workspace" />
          </Needs>
        )}
        {tab === "logs" && (
          <Needs running={running} what="its output">
            <Logs sandbox={sandbox} />
          </Needs>
        )}
        {tab === "details" && <Details sandbox={sandbox} />}
      </Tabs>
    </div>
  );
}

interface TabsProps {
  sandbox: Sandbox;
  tab: Tab;
  children: ComponentChildren;
}

/** Tabs are links, so that each has an address; arrow keys move between them as tabs do. */
function Tabs({ sandbox, tab, children }: TabsProps) {
  const list = useRef<HTMLDivElement>(null);
  const step = (by: number): void => {
    const next = TABS[(TABS.indexOf(tab) + by + TABS.length) % TABS.length];
    if (!next) return;
    go({ place: "sandbox", id: sandbox.id, tab: next });
    list.current?.querySelector<HTMLElement>(`#tab-${next}`)?.focus();
  };
  return (
    <>
      <div
        ref={list}
        class="tabs"
        role="tablist"
        aria-label="Parts of the sandbox"
        onKeyDown={(event) => {
          if (event.key === "ArrowRight") step(1);
          else if (event.key === "ArrowLeft") step(-1);
          else return;
          event.preventDefault();
        }}
      >
        {TABS.map((one) => (
          <a
            key={one}
            id={`tab-${one}`}
            role="tab"
            href={address({ place: "sandbox", id: sandbox.id, tab: one })}
            aria-selected={one === tab}
            aria-controls="tab-panel"
            tabIndex={one === tab ? 0 : -1}
          >
            {TAB_WORDS[one]}
          </a>
        ))}
      </div>
      <section id="tab-panel" class="panel" role="tabpanel" aria-labelledby={`tab-${tab}`} tabIndex={-1}>
        {children}
      </section>
    </>
  );
}

function Needs({ running, what, children }: { running: boolean; what: string; children: ComponentChildren }) {
  if (running) return <>{children}</>;
  return (
    <Nothing icon="sandbox" title="It does not run">
      <p>A sandbox shows {what} only while it runs.</p>
    </Nothing>
  );
}

function Details({ sandbox }: { sandbox: Sandbox }) {
  const { limits } = sandbox;
  const rows: [string, ComponentChildren][] = [
    ["Id", <code key="id">{sandbox.id}</code>],
    ["Image", visible(sandbox.image)],
    ["Made", moment(sandbox.created_at)],
    ["Ends", moment(sandbox.expires_at)],
    ["Workspace", sandbox.workspace_id ?? "its own, which goes with it"],
    ["Network", sandbox.network_allow ? `only ${sandbox.network_allow.join(", ")}` : sandbox.network],
    [
      "Published ports",
      (sandbox.ports ?? []).map(({ port, host_port }) => `127.0.0.1:${host_port} → ${port}`).join(", ") || "none",
    ],
    ["Processors", limits.cpus > 0 ? limits.cpus : "no limit"],
    ["Memory", limits.memory_bytes > 0 ? bytes(limits.memory_bytes) : "no limit"],
    ["Processes", limits.pids > 0 ? limits.pids : "no limit"],
    ["Disk", limits.disk_bytes > 0 ? bytes(limits.disk_bytes) : "no limit"],
    ["Confinement", `${sandbox.security}, system calls ${sandbox.seccomp}`],
    ["Engine", `${sandbox.engine}, start ${sandbox.generation}`],
  ];
  for (const [label, value] of Object.entries(sandbox.labels ?? {})) {
    rows.push([`Label ${visible(label)}`, visible(value)]);
  }
  return (
    <dl class="details">
      {rows.map(([name, value]) => (
        <div key={name}>
          <dt>
            <bdi>{name}</bdi>
          </dt>
          <dd>
            <bdi>{value}</bdi>
          </dd>
        </div>
      ))}
    </dl>
  );
}
