import tseslint from "typescript-eslint";

/** Ways for text to become markup, style or script. Text of sandboxes reaches the page as text only. */
const MARKUP = ["innerHTML", "outerHTML", "insertAdjacentHTML", "dangerouslySetInnerHTML", "srcdoc"].map((name) => ({
  selector: `:matches(Identifier[name='${name}'], JSXIdentifier[name='${name}'])`,
  message: `${name} turns text into markup`,
}));

export default tseslint.config(
  { ignores: ["dist", "dist-terminal", "node_modules", "tests"] },
  ...tseslint.configs.strictTypeChecked,
  {
    languageOptions: { parserOptions: { projectService: { allowDefaultProject: ["eslint.config.js"] } } },
    rules: {
      "no-eval": "error",
      "no-implied-eval": "error",
      "no-new-func": "error",
      "no-console": "error",
      eqeqeq: "error",
      "no-restricted-syntax": ["error", ...MARKUP],
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
      "@typescript-eslint/no-confusing-void-expression": ["error", { ignoreArrowShorthand: true }],
      "@typescript-eslint/switch-exhaustiveness-check": "error",
    },
  },
  { files: ["eslint.config.js"], ...tseslint.configs.disableTypeChecked },
);
