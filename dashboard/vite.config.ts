import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import { defineConfig, type Plugin } from "vite";

/** Packages whose code ends up in the page, and so their licences. */
const BUNDLED = ["preact", "@xterm/xterm", "@xterm/addon-fit"];

/** Files below this size gain nothing from compression. */
const PACKED_BYTES_MIN = 512;

/** Puts the licences of bundled packages beside the page. */
function licences(): Plugin {
  return {
    name: "licences",
    generateBundle() {
      const texts = BUNDLED.map((name) => `${name}\n\n${readFileSync(`node_modules/${name}/LICENSE`, "utf8").trim()}\n`);
      this.emitFile({ type: "asset", fileName: "_app/licences.txt", source: texts.join("\n\n----\n\n") });
    },
  };
}

/** Leaves a gzip and a brotli form beside each file, so that the server compresses nothing while it serves. */
function packed(): Plugin {
  return {
    name: "packed",
    apply: "build",
    closeBundle() {
      const visit = (folder: string): void => {
        for (const entry of readdirSync(folder, { withFileTypes: true })) {
          const path = join(folder, entry.name);
          if (entry.isDirectory()) {
            visit(path);
            continue;
          }
          const content = readFileSync(path);
          if (content.length < PACKED_BYTES_MIN) continue;
          writeFileSync(`${path}.gz`, gzipSync(content, { level: 9 }));
          const size = { [constants.BROTLI_PARAM_SIZE_HINT]: content.length };
          writeFileSync(`${path}.br`, brotliCompressSync(content, { params: size }));
        }
      };
      visit("dist");
    },
  };
}

export default defineConfig({
  plugins: [licences(), packed()],
  esbuild: { jsx: "automatic", jsxImportSource: "preact" },
  build: {
    target: "es2022",
    assetsDir: "_app",
    // The policy of the page allows files of the server and nothing inline.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 600,
  },
  // For work on the page against a running server: SANDHAUS_URL names it.
  server: {
    proxy: Object.fromEntries(
      ["/v1", "/dashboard", "/openapi.json"].map((path) => [
        path,
        { target: process.env["SANDHAUS_URL"] ?? "http://127.0.0.1:8080", ws: true },
      ]),
    ),
  },
});
