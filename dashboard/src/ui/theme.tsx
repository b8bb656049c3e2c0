/** Light, dark, or as the system has it. */

import { Store, useStore } from "../store";
import { Button } from "./controls";

const THEMES = ["system", "light", "dark"] as const;

type Theme = (typeof THEMES)[number];

/** Where the choice is kept; nothing else of this page is kept in the browser. */
const KEPT = "sandhaus-theme";

function kept(): Theme {
  try {
    return THEMES.find((theme) => theme === localStorage.getItem(KEPT)) ?? "system";
  } catch {
    return "system";
  }
}

export const theme = new Store<Theme>(kept());

function apply(chosen: Theme): void {
  if (chosen === "system") delete document.documentElement.dataset["theme"];
  else document.documentElement.dataset["theme"] = chosen;
}

apply(theme.get());
theme.watch((chosen) => {
  apply(chosen);
  try {
    localStorage.setItem(KEPT, chosen);
  } catch {
    // A browser that keeps nothing forgets the choice with the page.
  }
});

export function nextTheme(): void {
  const index = THEMES.indexOf(theme.get());
  theme.set(THEMES[(index + 1) % THEMES.length] ?? "system");
}

const ICONS = { system: "contrast", light: "sun", dark: "moon" } as const;

export function ThemeButton() {
  const chosen = useStore(theme);
  return (
    <Button bare kind="quiet" icon={ICONS[chosen]} keys="t" onClick={nextTheme}>
      {`Theme: ${chosen}`}
    </Button>
  );
}
