/** The door. */

import { useEffect, useRef, useState } from "preact/hooks";
import { words } from "../api";
import { logIn } from "../session";
import { Button } from "../ui/controls";
import { Mark } from "../ui/icon";
import { ThemeButton } from "../ui/theme";

export function LoginView() {
  const field = useRef<HTMLInputElement>(null);
  const [trouble, setTrouble] = useState<string>();
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    document.title = "Log in · Sandhaus";
    field.current?.focus();
  }, []);
  const submit = async (): Promise<void> => {
    const key = field.current?.value ?? "";
    setBusy(true);
    setTrouble(undefined);
    try {
      await logIn(key);
    } catch (error) {
      setTrouble(words(error));
      setBusy(false);
      field.current?.select();
    }
  };
  return (
    <main class="login">
      <form
        method="post"
        action="/dashboard/login"
        onSubmit={(event) => {
          event.preventDefault();
          void submit();
        }}
      >
        <Mark />
        <h1>Sandhaus</h1>
        <input type="text" name="username" autocomplete="username" value="sandhaus" hidden readOnly />
        <label for="key">Key of this server</label>
        <input
          id="key"
          ref={field}
          name="api_key"
          type="password"
          autocomplete="current-password"
          required
          aria-invalid={trouble !== undefined}
          aria-describedby="key-trouble"
        />
        <p id="key-trouble" class="field-trouble" role="alert">
          {trouble}
        </p>
        <Button kind="primary" type="submit" disabled={busy}>
          {busy ? "Logging in …" : "Log in"}
        </Button>
      </form>
      <ThemeButton />
    </main>
  );
}
