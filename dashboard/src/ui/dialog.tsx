/** Dialogs on the browser's own `<dialog>`: it keeps the focus inside and gives it back. */

import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";
import { Store, useStore } from "../store";
import { Button } from "./controls";

interface DialogProps {
  title: string;
  /** Called when the reader wants out: Escape, or a press beside it. */
  onClose: () => void;
  children: ComponentChildren;
  wide?: boolean;
}

export function Dialog({ title, onClose, children, wide = false }: DialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const name = useId();
  useEffect(() => {
    const shown = dialog.current;
    shown?.showModal();
    return () => shown?.close();
  }, []);
  return (
    <dialog
      ref={dialog}
      class={wide ? "dialog wide" : "dialog"}
      aria-labelledby={name}
      onCancel={(event) => {
        event.preventDefault();
        onClose();
      }}
      onMouseDown={(event) => {
        if (event.target === dialog.current) onClose();
      }}
    >
      <div class="dialog-body">
        <header>
          <h2 id={name}>{title}</h2>
          <Button bare kind="quiet" icon="close" onClick={onClose}>
            Close
          </Button>
        </header>
        {children}
      </div>
    </dialog>
  );
}

interface Question {
  title: string;
  text: ComponentChildren;
  action: string;
  kind: "danger" | "primary";
  answer: (yes: boolean) => void;
}

const question = new Store<Question | undefined>(undefined);

/** Asks before something that cannot be taken back. */
export function confirm(asked: Omit<Question, "answer" | "kind"> & { kind?: Question["kind"] }): Promise<boolean> {
  return new Promise((resolve) => {
    question.set({
      kind: "danger",
      ...asked,
      answer: (yes) => {
        question.set(undefined);
        resolve(yes);
      },
    });
  });
}

/** Where questions appear. */
export function Questions() {
  const asked = useStore(question);
  if (!asked) return null;
  return (
    <Dialog title={asked.title} onClose={() => asked.answer(false)}>
      <div class="dialog-text">{asked.text}</div>
      <footer>
        <Button autofocus onClick={() => asked.answer(false)}>
          Cancel
        </Button>
        <Button kind={asked.kind} onClick={() => asked.answer(true)}>
          {asked.action}
        </Button>
      </footer>
    </Dialog>
  );
}
