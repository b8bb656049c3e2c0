// Prints test results the way Rust's harness does, which is what the suite counts.

const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(2)}s`;

export default async function* report(events) {
  const counts = { passed: 0, failed: 0, ignored: 0 };
  const failures = [];
  const started = performance.now();
  for await (const { type, data } of events) {
    if (type === "test:stdout" || type === "test:stderr") yield data.message;
    if (type !== "test:pass" && type !== "test:fail") continue;
    // A file is reported like a test of its own; only what is in it counts, unless it could not even be read.
    const file = data.details?.type === "suite" || data.name.endsWith(".mjs");
    if (file && type === "test:pass") continue;
    if (file && data.details?.error?.failureType === "subtestsFailed") continue;
    const skipped = data.skip !== undefined || data.todo !== undefined;
    const verdict = skipped ? "ignored" : type === "test:pass" ? "passed" : "failed";
    counts[verdict] += 1;
    const word = { passed: "ok", failed: "FAILED", ignored: "ignored" }[verdict];
    yield `test ${data.name} ... ${word}\n`;
    if (verdict === "failed") failures.push({ name: data.name, error: data.details.error });
  }
  for (const { name, error } of failures) {
    const cause = error?.cause ?? error;
    yield `\n---- ${name}\n${cause?.stack ?? cause}\n`;
  }
  const verdict = counts.failed === 0 ? "ok" : "FAILED";
  yield `\ntest result: ${verdict}. ${counts.passed} passed; ${counts.failed} failed; ${counts.ignored} ignored; `;
  yield `0 measured; 0 filtered out; finished in ${seconds(performance.now() - started)}\n`;
}
