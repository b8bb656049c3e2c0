import { readFileSync } from "node:fs";
import { defineConfig, type Plugin } from "vite";

/** Packages whose code ends up in the page, and so their licences. */
const BUNDLED = ["@xterm/xterm", "@xterm/addon-fit"];

/** Puts the licences of bundled packages in front of the code: there is no other file to put them in. */
function licences(): Plugin {
  return {
    name: "licences",
    enforce: "post",
    generateBundle(_options, bundle) {
      const texts = BUNDLED.map((name) => `${name}\n\n${readFileSync(`node_modules/${name}/LICENSE`, "utf8").trim()}`);
      for (const part of Object.values(bundle)) {
        if (part.type === "chunk") part.code = `/*\n${texts.join("\n\n")}\n*/\n${part.code}`;
      }
    },
  };
}

/** The page of the terminal that an agent serves by itself: three files under fixed names, relative to each other. */
export default defineConfig({
  base: "./",
  plugins: [licences()],
  build: {
    target: "es2022",
    outDir: "dist-terminal",
    // The policy of the page allows files of the agent and nothing inline.
    assetsInlineLimit: 0,
    modulePreload: false,
    cssCodeSplit: false,
    rollupOptions: {
      input: "terminal.html",
      output: {
        entryFileNames: "terminal.js",
        assetFileNames: "terminal[extname]",
        inlineDynamicImports: true,
      },
    },
  },
});
