/** Buttons, marks and messages that all views share. */

import type { ComponentChildren, HTMLAttributes, Ref } from "preact";
import type { Status } from "../wire";
import { Icon, type IconName } from "./icon";

interface ButtonProps {
  icon?: IconName;
  children: ComponentChildren;
  onClick?: () => void;
  kind?: "plain" | "primary" | "danger" | "quiet";
  /** Shows the icon alone; the children are its name. */
  bare?: boolean;
  disabled?: boolean;
  type?: "button" | "submit";
  id?: string;
  pressed?: boolean;
  autofocus?: boolean;
  keys?: string;
  innerRef?: Ref<HTMLButtonElement>;
}

export function Button(props: ButtonProps) {
  const { icon, children, kind = "plain", bare = false, disabled = false, type = "button", onClick } = props;
  const extra: HTMLAttributes<HTMLButtonElement> = {};
  if (props.id !== undefined) extra.id = props.id;
  if (props.keys !== undefined) extra["aria-keyshortcuts"] = props.keys;
  if (props.innerRef !== undefined) extra.ref = props.innerRef;
  if (bare && typeof children === "string") extra.title = children;
  return (
    <button
      {...extra}
      type={type}
      class={`button ${kind}${bare ? " bare" : ""}`}
      disabled={disabled}
      autofocus={props.autofocus}
      aria-pressed={props.pressed}
      onClick={onClick && (() => onClick())}
    >
      {icon && <Icon name={icon} />}
      {bare ? <span class="unseen">{children}</span> : <span>{children}</span>}
    </button>
  );
}

const STATES: Record<Status, { word: string; tone: "good" | "calm" | "busy" | "bad" }> = {
  starting: { word: "Starting", tone: "busy" },
  running: { word: "Running", tone: "good" },
  paused: { word: "Paused", tone: "calm" },
  suspended: { word: "Suspended", tone: "calm" },
  stopping: { word: "Stopping", tone: "busy" },
  stopped: { word: "Stopped", tone: "calm" },
  archived: { word: "Archived", tone: "calm" },
  pool_idle: { word: "In the pool", tone: "calm" },
  destroying: { word: "Destroying", tone: "busy" },
  destroyed: { word: "Destroyed", tone: "calm" },
  expired: { word: "Expired", tone: "calm" },
  crashed: { word: "Crashed", tone: "bad" },
};

export function stateWord(status: Status): string {
  // A newer server may know states that this page does not.
  return (STATES[status] as { word: string } | undefined)?.word ?? status;
}

export function State({ status }: { status: Status }) {
  const tone = (STATES[status] as { tone: string } | undefined)?.tone ?? "calm";
  return <span class={`state ${tone}`}>{stateWord(status)}</span>;
}

/** Where a list would be, when there is none. */
export function Nothing(props: { icon: IconName; title: string; children?: ComponentChildren }) {
  return (
    <div class="nothing">
      <Icon name={props.icon} />
      <h2>{props.title}</h2>
      {props.children}
    </div>
  );
}

export function Trouble(props: { children: ComponentChildren; again?: () => void }) {
  return (
    <div class="trouble" role="alert">
      <Icon name="warning" />
      <p>{props.children}</p>
      {props.again && <Button onClick={props.again}>Try again</Button>}
    </div>
  );
}

/** Rows that will come, so that nothing jumps when they do. */
export function Waiting({ rows = 3, label }: { rows?: number; label: string }) {
  return (
    <div class="waiting" role="status">
      <span class="unseen">{label}</span>
      {Array.from({ length: rows }, (_, index) => (
        <div key={index} class="waiting-row" aria-hidden="true" />
      ))}
    </div>
  );
}
