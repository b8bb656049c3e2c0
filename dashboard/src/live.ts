/**
 * What the server has now: asked for every two seconds while somebody looks. Two calls serve any number of sandboxes,
 * and neither counts as a use of any, so looking keeps nothing alive.
 */

import { ApiError, ask, isAbort, words } from "./api";
import { Store } from "./store";
import type { Sandbox, Stats } from "./wire";

const PAUSE_MS = 2000;

/** Longest pause while the server cannot be reached. */
const PAUSE_MS_MAX = 15_000;

/** Samples kept of each sandbox: two minutes. */
const SAMPLES_MAX = 60;

/** Use of resources between two looks. */
export interface Sample {
  /** Processors in use: 1 is one whole. */
  cpu: number;
  memory: number;
}

/** Use of one sandbox of late. */
export interface Usage {
  samples: readonly Sample[];
  last: Stats;
}

export interface Live {
  /** Undefined before the first answer. */
  sandboxes: readonly Sandbox[] | undefined;
  usage: ReadonlyMap<string, Usage>;
  /** Why what is shown may be old. */
  trouble: string | undefined;
  now: number;
}

interface Look {
  at: number;
  generation: number;
  stats: Stats;
}

export class Watch {
  readonly live = new Store<Live>({ sandboxes: undefined, usage: new Map(), trouble: undefined, now: Date.now() });
  #looks = new Map<string, Look>();
  #timer: number | undefined;
  #failures = 0;
  #asking: AbortController | undefined;
  #again = false;

  start(): void {
    document.addEventListener("visibilitychange", this.#wake);
    void this.refresh();
  }

  stop(): void {
    document.removeEventListener("visibilitychange", this.#wake);
    clearTimeout(this.#timer);
    this.#asking?.abort();
    this.#asking = undefined;
  }

  readonly #wake = (): void => {
    if (!document.hidden) void this.refresh();
  };

  /** Looks now. A look that is under way is followed by another, since it may have missed what just changed. */
  async refresh(): Promise<void> {
    if (this.#asking) {
      this.#again = true;
      return;
    }
    clearTimeout(this.#timer);
    const asking = new AbortController();
    this.#asking = asking;
    try {
      const signal = asking.signal;
      const [sandboxes, stats] = await Promise.all([
        ask<Sandbox[]>("/v1/sessions", { signal }),
        ask<{ sessions: Record<string, Stats> }>("/v1/stats", { signal }),
      ]);
      this.#failures = 0;
      this.#show(sandboxes, stats.sessions);
    } catch (error) {
      if (isAbort(error)) return;
      if (error instanceof ApiError && error.status === 401) return;
      this.#failures += 1;
      this.live.set({ ...this.live.get(), trouble: words(error), now: Date.now() });
    } finally {
      if (this.#asking === asking) this.#asking = undefined;
    }
    if (this.#again) {
      this.#again = false;
      await this.refresh();
      return;
    }
    if (!document.hidden) {
      const pause = Math.min(PAUSE_MS * 2 ** this.#failures, PAUSE_MS_MAX);
      this.#timer = window.setTimeout(() => void this.refresh(), pause);
    }
  }

  #show(sandboxes: readonly Sandbox[], stats: Readonly<Record<string, Stats>>): void {
    const before = this.live.get().usage;
    const usage = new Map<string, Usage>();
    const looks = new Map<string, Look>();
    const at = performance.now();
    for (const sandbox of sandboxes) {
      const now = stats[sandbox.id];
      if (!now) continue;
      const last = this.#looks.get(sandbox.id);
      looks.set(sandbox.id, { at, generation: sandbox.generation, stats: now });
      // A machine that was started anew counts from zero again.
      const same = last?.generation === sandbox.generation && now.cpu_usage_usec >= last.stats.cpu_usage_usec;
      const cpu = same ? (now.cpu_usage_usec - last.stats.cpu_usage_usec) / 1000 / Math.max(1, at - last.at) : 0;
      const samples = [...(before.get(sandbox.id)?.samples ?? []), { cpu, memory: now.memory_bytes }];
      usage.set(sandbox.id, { samples: samples.slice(-SAMPLES_MAX), last: now });
    }
    this.#looks = looks;
    this.live.set({ sandboxes, usage, trouble: undefined, now: Date.now() });
  }
}

export const watch = new Watch();
