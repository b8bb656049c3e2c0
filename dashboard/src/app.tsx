/** The frame of the page: who may see it, where one can go, and what is said at its edges. */

import { useEffect, useState } from "preact/hooks";
import { onLoggedOut, words } from "./api";
import { watch } from "./live";
import { address, go, route as here, type Route } from "./route";
import { logOut, look, session as known } from "./session";
import { useStore } from "./store";
import { Button, Trouble } from "./ui/controls";
import { Questions } from "./ui/dialog";
import { Mark } from "./ui/icon";
import { KeysDialog, useKeys } from "./ui/keys";
import { failed, Notices, speak } from "./ui/notice";
import { nextTheme, ThemeButton } from "./ui/theme";
import { ImagesView } from "./views/images";
import { LoginView } from "./views/login";
import { SandboxView } from "./views/sandbox";
import { SandboxesView } from "./views/sandboxes";
import { WorkspacesView, WorkspaceView } from "./views/workspaces";

const NAME = "Sandhaus";

export function App() {
  const session = useStore(known);
  const [trouble, setTrouble] = useState<string>();
  const begin = (): void => {
    setTrouble(undefined);
    look().catch((error: unknown) => setTrouble(words(error)));
  };
  useEffect(() => {
    onLoggedOut(() => {
      const before = known.get();
      if (before?.authenticated) known.set({ authenticated: false, needs_key: before.needs_key });
    });
    begin();
  }, []);
  return (
    <>
      {trouble !== undefined && <Trouble again={begin}>{trouble}</Trouble>}
      {session && !session.authenticated && <LoginView />}
      {session?.authenticated && <Inside />}
      <Questions />
      <Notices />
    </>
  );
}

function Inside() {
  const route = useStore(here);
  const session = useStore(known);
  const [help, setHelp] = useState(false);
  useEffect(() => {
    watch.start();
    return () => watch.stop();
  }, []);
  useKeys({
    "?": () => setHelp(true),
    "g s": () => go({ place: "sandboxes" }),
    "g i": () => go({ place: "images" }),
    "g w": () => go({ place: "workspaces" }),
    t: nextTheme,
  });
  const name = placeName(route);
  useEffect(() => {
    document.title = `${name} · ${NAME}`;
    speak(name);
  }, [name]);
  return (
    <>
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          document.getElementById("main")?.focus();
        }}
      >
        Skip to the content
      </a>
      <header class="top">
        <a class="brand" href={address({ place: "sandboxes" })}>
          <Mark />
          <span>{NAME}</span>
        </a>
        <nav aria-label="Main">
          <Place to={{ place: "sandboxes" }} at={route} also="sandbox" />
          <Place to={{ place: "images" }} at={route} />
          <Place to={{ place: "workspaces" }} at={route} also="workspace" />
        </nav>
        <div class="top-actions">
          <ThemeButton />
          <Button bare kind="quiet" icon="help" keys="?" onClick={() => setHelp(true)}>
            Keyboard shortcuts
          </Button>
          {session?.needs_key && (
            <Button
              bare
              kind="quiet"
              icon="leave"
              onClick={() => void logOut().catch((error: unknown) => failed(words(error)))}
            >
              Log out
            </Button>
          )}
        </div>
      </header>
      <Connection />
      <main id="main" tabIndex={-1}>
        <View route={route} />
      </main>
      {help && <KeysDialog version={session?.version} onClose={() => setHelp(false)} />}
    </>
  );
}

function Place({ to, at, also }: { to: Route; at: Route; also?: Route["place"] }) {
  const current = at.place === to.place || at.place === also;
  return (
    <a href={address(to)} aria-current={current ? "page" : undefined}>
      {placeName(to)}
    </a>
  );
}

function Connection() {
  const { trouble } = useStore(watch.live);
  return (
    <div class="connection" role="status">
      {trouble !== undefined && <p>What you see may be old: {trouble}. Trying again …</p>}
    </div>
  );
}

function View({ route }: { route: Route }) {
  switch (route.place) {
    case "sandboxes":
      return <SandboxesView />;
    case "sandbox":
      return <SandboxView key={route.id} id={route.id} tab={route.tab} />;
    case "images":
      return <ImagesView />;
    case "workspaces":
      return <WorkspacesView />;
    case "workspace":
      return <WorkspaceView key={route.id} id={route.id} />;
  }
}

function placeName(route: Route): string {
  switch (route.place) {
    case "sandboxes":
      return "Sandboxes";
    case "sandbox":
      return `Sandbox ${route.id}`;
    case "images":
      return "Images";
    case "workspaces":
      return "Workspaces";
    case "workspace":
      return `Workspace ${route.id}`;
  }
}
