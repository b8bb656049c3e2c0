// A session over plain HTTP from JavaScript, with the output as it comes. Node 18 or newer, nothing to install.

const url = process.env.SANDHAUS_URL ?? "http://localhost:8080";
const headers = { "Content-Type": "application/json", Authorization: `Bearer ${process.env.SANDHAUS_API_KEY ?? ""}` };

async function request(method, path, body) {
  const answer = await fetch(url + path, { method, headers, body: body && JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
  return answer;
}

/** Events of a stream, as they arrive. A network read may hold half an event, so lines are put together first. */
async function* events(path, body) {
  let pending = "", name;
  for await (const piece of (await request("POST", path, body)).body.pipeThrough(new TextDecoderStream())) {
    const lines = (pending + piece).split("\n");
    pending = lines.pop();
    for (const line of lines) {
      if (line.startsWith("event: ")) name = line.slice("event: ".length);
      if (line.startsWith("data: ")) yield [name, JSON.parse(line.slice("data: ".length))];
    }
  }
}

const session = await (await request("POST", "/v1/sessions", { ttl_seconds: 300 })).json();
const path = `/v1/sessions/${session.id}`;
try {
  for await (const [name, data] of events(`${path}/exec/stream`, { cmd: "for i in 1 2 3; do echo step $i; sleep 0.1; done" })) {
    if (name === "chunk") process.stdout.write(data.chunk);
    if (name === "done") console.log(`ended with ${data.exit_code}`);
  }
} finally {
  await request("DELETE", path);
}
