/** Events of a stream (`event: NAME`, `data: JSON`), one after the other, from bytes that arrive in any pieces. */

/** Longest event that is waited for, in characters. */
const EVENT_CHARS_MAX = 64 * 1024;

export interface StreamEvent {
  name: string;
  data: unknown;
}

export async function* events(response: Response): AsyncGenerator<StreamEvent> {
  const reader = response.body?.getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const read = await reader?.read();
    if (!read || read.done) return;
    text += decoder.decode(read.value, { stream: true });
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const lines = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const field = (name: string): string | undefined =>
        lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      const data = field("data");
      if (data !== undefined) yield { name: field("event") ?? "message", data: JSON.parse(data) as unknown };
    }
    if (text.length > EVENT_CHARS_MAX) throw new Error("the stream is malformed");
  }
}
