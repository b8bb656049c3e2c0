/** What happened, said once: on the screen for a while, and aloud to a screen reader. */

import { Store, useStore } from "../store";
import { Button } from "./controls";
import { Icon } from "./icon";

/** How long a notice stays. Failures stay until they are sent away. */
const STAY_MS = 5000;

/** Most notices at once. */
const NOTICES_MAX = 4;

interface Notice {
  id: number;
  text: string;
  tone: "good" | "bad";
}

const notices = new Store<readonly Notice[]>([]);
const spoken = new Store("");
let last = 0;

function remove(id: number): void {
  notices.set(notices.get().filter((notice) => notice.id !== id));
}

function show(text: string, tone: Notice["tone"]): void {
  last += 1;
  const id = last;
  notices.set([...notices.get(), { id, text, tone }].slice(-NOTICES_MAX));
  if (tone === "good") setTimeout(() => remove(id), STAY_MS);
}

export function said(text: string): void {
  show(text, "good");
}

export function failed(text: string): void {
  show(text, "bad");
}

/** Says something to screen readers alone. */
export function speak(text: string): void {
  spoken.set(text);
}

export function Notices() {
  const shown = useStore(notices);
  const aloud = useStore(spoken);
  return (
    <>
      <div class="unseen" role="status" aria-live="polite">
        {aloud}
      </div>
      <section class="notices" aria-label="Notices">
        {shown.map((notice) => (
          <div key={notice.id} class={`notice ${notice.tone}`} role={notice.tone === "bad" ? "alert" : "status"}>
            <Icon name={notice.tone === "bad" ? "warning" : "check"} />
            <p>{notice.text}</p>
            <Button bare kind="quiet" icon="close" onClick={() => remove(notice.id)}>
              Dismiss
            </Button>
          </div>
        ))}
      </section>
    </>
  );
}
