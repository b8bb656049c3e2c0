/** Numbers, times and foreign text as people read them. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** `0 B`, `640 KiB`, `1.5 GiB`. */
export function bytes(count: number): string {
  let value = count;
  let unit = 0;
  while (value >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit > 0 && value < 9.95 ? 1 : 0;
  return `${value.toFixed(digits)} ${UNITS[unit] ?? ""}`;
}

/** `12 s`, `5 min`, `3 h 20 min`, `2 d 4 h`. */
export function duration(milliseconds: number): string {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 === 0 ? `${hours} h` : `${hours} h ${minutes % 60} min`;
  const days = Math.floor(hours / 24);
  return hours % 24 === 0 ? `${days} d` : `${days} d ${hours % 24} h`;
}

/** How long ago; empty where the time is not one. */
export function since(time: string, now: number): string {
  const at = Date.parse(time);
  return Number.isNaN(at) ? "" : duration(now - at);
}

/** A time beyond any session stands for never. */
const NEVER_YEAR = 9999;

/** How long until; `never` for the far end of time. */
export function until(time: string, now: number): string {
  const at = new Date(time);
  if (Number.isNaN(at.getTime())) return "";
  if (at.getUTCFullYear() >= NEVER_YEAR) return "never";
  return duration(at.getTime() - now);
}

/** A time in the reader's own words. */
export function moment(time: string): string {
  const at = new Date(time);
  if (Number.isNaN(at.getTime())) return "";
  if (at.getUTCFullYear() >= NEVER_YEAR) return "never";
  return at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

/** `3.2 %`, `48 %`. */
export function percent(share: number): string {
  const value = share * 100;
  return `${value.toFixed(value < 9.95 ? 1 : 0)} %`;
}

/**
 * Text from inside a sandbox on one line: what cannot be seen, or turns the direction of what follows, is shown as a
 * placeholder, so that a name cannot look like another one.
 */
export function visible(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, "\u{fffd}");
}

/** Longest title that a terminal may give itself, in characters. */
const TITLE_CHARS_MAX = 80;

export function title(text: string): string {
  const shown = visible(text).trim();
  return shown.length > TITLE_CHARS_MAX ? `${shown.slice(0, TITLE_CHARS_MAX - 1)}…` : shown;
}
