/** Calls of the server. Every answer that is not a success becomes an [`ApiError`] with the server's own words. */

export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

/** What an error says to a person. */
export function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

/** Called when the server no longer knows this browser. */
let whenLoggedOut = (): void => undefined;

export function onLoggedOut(callback: () => void): void {
  whenLoggedOut = callback;
}

interface ErrorBody {
  error_code?: unknown;
  message?: unknown;
}

async function failure(response: Response): Promise<ApiError> {
  const body = (await response.json().catch(() => ({}))) as ErrorBody;
  const code = typeof body.error_code === "string" ? body.error_code : "UNKNOWN";
  const message = typeof body.message === "string" ? body.message : `the server answered ${response.status}`;
  if (response.status === 401 && code === "UNAUTHORIZED") whenLoggedOut();
  return new ApiError(response.status, code, message);
}

export interface Call {
  method?: "GET" | "POST" | "PUT" | "DELETE";
  /** Sent as JSON. */
  json?: unknown;
  signal?: AbortSignal;
}

/** The answer to a call, as it begins. */
export async function send(path: string, call: Call = {}): Promise<Response> {
  const request: RequestInit = { method: call.method ?? "GET", credentials: "same-origin" };
  if (call.json !== undefined) {
    request.headers = { "Content-Type": "application/json" };
    request.body = JSON.stringify(call.json);
  }
  if (call.signal) request.signal = call.signal;
  let response: Response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ApiError(0, "UNREACHABLE", "the server cannot be reached");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** The answer to a call, whole, from JSON. */
export async function ask<T>(path: string, call: Call = {}): Promise<T> {
  const response = await send(path, call);
  return (await response.json()) as T;
}

/** A path with each part and parameter escaped. */
export function path(parts: readonly string[], query: Readonly<Record<string, string>> = {}): string {
  const joined = `/${parts.map(encodeURIComponent).join("/")}`;
  const parameters = new URLSearchParams(query).toString();
  return parameters === "" ? joined : `${joined}?${parameters}`;
}

/** The address of a WebSocket of this server. */
export function socketAddress(pathAndQuery: string): string {
  const url = new URL(pathAndQuery, location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

/** Sends a file's bytes as they are and tells how far it is. `fetch` could not tell. */
export function put(target: string, file: Blob, progress: (sent: number) => void, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", target);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.responseType = "text";
    request.upload.onprogress = (event) => progress(event.loaded);
    request.onload = () => {
      if (request.status >= 200 && request.status < 300) {
        resolve();
        return;
      }
      const answer = new Response(request.responseText, { status: Math.max(request.status, 400) });
      void failure(answer).then(reject);
    };
    request.onerror = () => reject(new ApiError(0, "UNREACHABLE", "the connection broke"));
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}
