/** Who the reader is to the server, and what the server can do. */

import { ask } from "./api";
import { Store } from "./store";
import type { Session } from "./wire";

/** Undefined before the first answer. */
export const session = new Store<Session | undefined>(undefined);

export async function look(): Promise<void> {
  session.set(await ask<Session>("/dashboard/session"));
}

export function can(feature: string): boolean {
  return session.get()?.features?.includes(feature) ?? false;
}

export async function logIn(key: string): Promise<void> {
  await ask("/dashboard/login", { method: "POST", json: { api_key: key } });
  await look();
}

export async function logOut(): Promise<void> {
  await ask("/dashboard/logout", { method: "POST" });
  await look();
}
