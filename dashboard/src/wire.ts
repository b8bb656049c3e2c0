/** What travels over `/v1`, as far as the page needs it. */

export type Status =
  | "starting"
  | "running"
  | "paused"
  | "suspended"
  | "stopping"
  | "stopped"
  | "archived"
  | "pool_idle"
  | "destroying"
  | "destroyed"
  | "expired"
  | "crashed";

export interface Limits {
  cpus: number;
  memory_bytes: number;
  pids: number;
  disk_bytes: number;
}

export interface Port {
  port: number;
  host_port: number;
}

export interface Sandbox {
  id: string;
  image: string;
  status: Status;
  cwd: string;
  created_at: string;
  expires_at: string;
  workspace_id?: string;
  name?: string;
  labels?: Record<string, string>;
  engine: string;
  generation: number;
  limits: Limits;
  network: string;
  network_allow?: string[];
  ports?: Port[];
  seccomp: string;
  security: string;
  failure?: { kind: string; message: string; at: string };
}

export interface Stats {
  memory_bytes: number;
  memory_limit?: number;
  cpu_usage_usec: number;
  pids: number;
  oom_kills: number;
}

export interface CreateSandbox {
  image?: string;
  name?: string;
  ttl_seconds?: number;
  workspace_id?: string;
  cpus?: number;
  memory_mb?: number;
  pids?: number;
  disk_mb?: number;
  env?: Record<string, string>;
  network?: string | { allow: string[] };
}

export interface Entry {
  name: string;
  is_dir: boolean;
  size?: number;
  mode?: string;
  modified_at?: string;
}

export interface Image {
  name: string;
  digest: string;
  kind: string;
  created_at: string;
  size_bytes: number;
}

/** Event `progress` of a pull. */
export interface PullProgress {
  done_bytes: number;
  total_bytes: number;
  layers_done: number;
  layers: number;
}

export interface Workspace {
  id: string;
  created_at?: string;
  used_bytes?: number;
  quota_bytes?: number;
  session_count?: number;
}

/** `GET /dashboard/session`. */
export interface Session {
  authenticated: boolean;
  needs_key: boolean;
  version?: string;
  features?: string[];
}
