/** Terminals in a sandbox. They belong to the sandbox: leaving the page leaves them running. */

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { words } from "../api";
import { title } from "../format";
import { Connection, create, type Link, remove, terminals } from "../terminal/connection";
import { open, type Screen } from "../terminal/screen";
import { Button, Trouble, Waiting } from "../ui/controls";
import { confirm } from "../ui/dialog";
import { failed } from "../ui/notice";

interface Known {
  id: string;
  number: number;
  title: string;
}

export function TerminalTab({ sandbox }: { sandbox: string }) {
  const [known, setKnown] = useState<readonly Known[]>();
  const [shown, setShown] = useState<string>();
  const [trouble, setTrouble] = useState<string>();
  const count = useRef(0);

  const add = async (): Promise<void> => {
    try {
      const id = await create(sandbox);
      count.current += 1;
      const number = count.current;
      setKnown((before) => [...(before ?? []), { id, number, title: "" }]);
      setShown(id);
    } catch (error) {
      setTrouble(words(error));
    }
  };
  useEffect(() => {
    let gone = false;
    const begin = async (): Promise<void> => {
      try {
        const there = await terminals(sandbox);
        if (gone) return;
        if (there.length === 0) {
          await add();
          return;
        }
        count.current = there.length;
        setKnown(there.map(({ id }, index) => ({ id, number: index + 1, title: "" })));
        setShown(there.at(-1)?.id);
      } catch (error) {
        if (!gone) setTrouble(words(error));
      }
    };
    void begin();
    return () => {
      gone = true;
    };
  }, [sandbox]);

  const drop = (id: string): void => {
    const rest = known?.filter((one) => one.id !== id) ?? [];
    setKnown(rest);
    setShown(rest.at(-1)?.id);
    if (rest.length === 0) void add();
  };
  const close = async (one: Known, ended: boolean): Promise<void> => {
    if (!ended) {
      const yes = await confirm({
        title: `Close terminal ${one.number}?`,
        text: "Its shell and everything that it runs end.",
        action: "Close it",
      });
      if (!yes) return;
      await remove(sandbox, one.id).catch((error: unknown) => failed(words(error)));
    }
    drop(one.id);
  };

  if (trouble !== undefined) return <Trouble again={() => (setTrouble(undefined), void add())}>{trouble}</Trouble>;
  if (!known) return <Waiting label="Opening a terminal" rows={1} />;
  return (
    <div class="terminals">
      <div class="terminal-bar" role="group" aria-label="Terminals">
        {known.map((one) => (
          <Button key={one.id} kind="quiet" pressed={one.id === shown} onClick={() => setShown(one.id)}>
            {one.title !== "" ? `${one.number}: ${one.title}` : `Terminal ${one.number}`}
          </Button>
        ))}
        <Button bare kind="quiet" icon="plus" onClick={() => void add()}>
          Another terminal
        </Button>
        <span class="hint terminal-hint">
          <kbd>Ctrl</kbd> <kbd>F6</kbd> leaves the terminal
        </span>
      </div>
      {known.map((one) => (
        <TerminalPane
          key={one.id}
          sandbox={sandbox}
          terminal={one}
          shown={one.id === shown}
          setTitle={(text) =>
            setKnown((before) => before?.map((other) => (other.id === one.id ? { ...other, title: text } : other)))
          }
          close={(ended) => void close(one, ended)}
        />
      ))}
    </div>
  );
}

interface PaneProps {
  sandbox: string;
  terminal: Known;
  shown: boolean;
  setTitle: (text: string) => void;
  close: (ended: boolean) => void;
}

function TerminalPane({ sandbox, terminal, shown, setTitle, close }: PaneProps) {
  const place = useRef<HTMLDivElement>(null);
  const screen = useRef<Screen>();
  const [link, setLink] = useState<Link>({ state: "connecting" });

  // Before anything is painted: what is typed once the terminal is seen goes into it.
  useLayoutEffect(() => {
    if (!place.current) return undefined;
    let old = 0;
    const connection: Connection = new Connection(sandbox, terminal.id, {
      begin: () => made.terminal.reset(),
      link: setLink,
      output: (bytes, age) => {
        if (age === "new") {
          made.terminal.write(bytes);
          return;
        }
        // What an old question in it is answered with would be typed into the shell of now.
        old += 1;
        made.terminal.write(bytes, () => {
          old -= 1;
        });
      },
    });
    const made = open(place.current, `Terminal ${terminal.number}`, {
      typed: (text) => {
        if (old === 0) connection.type(text);
      },
      bytes: (text) => {
        if (old === 0) connection.type(text, "bytes");
      },
      resized: (cols, rows) => connection.resize({ cols, rows }),
      title: (text) => setTitle(title(text)),
      leave: () => document.getElementById("tab-terminal")?.focus(),
    });
    screen.current = made;
    connection.resize({ cols: made.terminal.cols, rows: made.terminal.rows });
    connection.connect();
    return () => {
      connection.close();
      made.dispose();
      screen.current = undefined;
    };
  }, [sandbox, terminal.id]);

  useLayoutEffect(() => {
    if (!shown) return;
    screen.current?.fit();
    screen.current?.terminal.focus();
  }, [shown]);

  const ended = link.state === "ended";
  return (
    <div class="terminal-pane" hidden={!shown}>
      <div class="terminal-place" ref={place} />
      <div class={`terminal-link ${link.state}`} role="status">
        {link.state === "waiting" && <span>Disconnected: {link.why}. Connecting again …</span>}
        {link.state === "connecting" && <span>Connecting …</span>}
        {link.state === "open" && <span>Connected</span>}
        {ended && <span>Ended: {link.why}.</span>}
        <Button kind="quiet" onClick={() => close(ended)}>
          {ended ? "Close and open a new one" : "Close terminal"}
        </Button>
      </div>
    </div>
  );
}
