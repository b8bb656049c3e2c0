/** Where the page is: the part of its address after `#`. */

import { Store } from "./store";

export const TABS = ["terminal", "files", "logs", "details"] as const;

export type Tab = (typeof TABS)[number];

export type Route =
  | { place: "sandboxes" }
  | { place: "sandbox"; id: string; tab: Tab }
  | { place: "images" }
  | { place: "workspaces" }
  | { place: "workspace"; id: string };

function part(text: string | undefined): string {
  try {
    return decodeURIComponent(text ?? "");
  } catch {
    return "";
  }
}

export function parse(hash: string): Route {
  const [place, id, tab] = hash.replace(/^#\/?/, "").split("/");
  switch (place) {
    case "sandboxes":
      if (part(id) === "") return { place: "sandboxes" };
      return { place: "sandbox", id: part(id), tab: TABS.find((known) => known === tab) ?? "terminal" };
    case "images":
      return { place: "images" };
    case "workspaces":
      return part(id) === "" ? { place: "workspaces" } : { place: "workspace", id: part(id) };
    case undefined:
    default:
      return { place: "sandboxes" };
  }
}

export function address(route: Route): string {
  switch (route.place) {
    case "sandboxes":
      return "#/sandboxes";
    case "sandbox":
      return `#/sandboxes/${encodeURIComponent(route.id)}/${route.tab}`;
    case "images":
      return "#/images";
    case "workspaces":
      return "#/workspaces";
    case "workspace":
      return `#/workspaces/${encodeURIComponent(route.id)}`;
  }
}

export const route = new Store<Route>(parse(location.hash));

addEventListener("hashchange", () => route.set(parse(location.hash)));

export function go(to: Route): void {
  location.hash = address(to);
}
