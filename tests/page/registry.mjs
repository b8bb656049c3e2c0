// A registry with one small image, whose layer can be held back.

import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

const MANIFEST = "application/vnd.oci.image.manifest.v1+json";

const digest = (content) => `sha256:${createHash("sha256").update(content).digest("hex")}`;

/** Serves `tiny:latest`. The layer stops half way until `release` is called. */
export async function registry() {
  const folder = mkdtempSync(join(tmpdir(), "sandhaus-page-registry-"));
  // What does not compress: half of it is really half of it.
  writeFileSync(join(folder, "noise"), randomBytes(60_000));
  const tar = execFileSync("tar", ["-C", folder, "-cf", "-", "noise"]);
  const layer = execFileSync("gzip", ["-c"], { input: tar });
  rmSync(folder, { recursive: true });
  const architecture = { x64: "amd64", arm64: "arm64" }[process.arch];
  const rootfs = { type: "layers", diff_ids: [digest(tar)] };
  const config = Buffer.from(JSON.stringify({ architecture, os: "linux", config: {}, rootfs }));
  const describe = (mediaType, content) => ({ mediaType, digest: digest(content), size: content.length });
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MANIFEST,
      config: describe("application/vnd.oci.image.config.v1+json", config),
      layers: [describe("application/vnd.oci.image.layer.v1.tar+gzip", layer)],
    }),
  );
  let release;
  const released = new Promise((resolve) => (release = resolve));
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url, "http://registry");
    const give = (content, type) => {
      response.writeHead(200, { "content-type": type, "content-length": content.length, "docker-content-digest": digest(content) });
      if (request.method === "HEAD") response.end();
      else if (content !== layer) response.end(content);
      else {
        response.write(content.subarray(0, content.length / 2));
        void released.then(() => response.end(content.subarray(content.length / 2)));
      }
    };
    if (pathname === "/v2/") return response.writeHead(200).end();
    if (pathname.startsWith("/v2/tiny/manifests/")) return give(manifest, MANIFEST);
    const blob = [config, layer].find((content) => pathname === `/v2/tiny/blobs/${digest(content)}`);
    return blob ? give(blob, "application/octet-stream") : response.writeHead(404).end();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const close = () => {
    server.closeAllConnections();
    server.close();
  };
  return { reference: `127.0.0.1:${server.address().port}/tiny:latest`, release, close };
}
