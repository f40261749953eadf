import Sqlite from 'better-sqlite3';

/** An agent of the original control plane. */
export interface OriginalAgentRow {
  id: number;
  hostname: string;
  auth_token: string;
  last_heartbeat?: string;
  disabled?: number;
  revoked?: number;
}

/** A task of it. */
export interface OriginalTaskRow {
  id: number;
  kind: string;
  spec: unknown;
  status?: string;
}

/** What the original control plane's SQLite database holds, as far as a test says. */
export interface OriginalRows {
  agents?: OriginalAgentRow[];
  tasks?: OriginalTaskRow[];
  /** The last ids that were given. */
  sequences?: Partial<Record<'agent_id' | 'task_id' | 'lease_id' | 'metric_id', number>>;
}

const INSTANT = 'TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP';

/** The tables and columns by which the original keeps its data. */
const TABLES: Record<string, string[]> = {
  _sqlx_migrations: ['version BIGINT PRIMARY KEY', 'description TEXT NOT NULL', `installed_on ${INSTANT}`],
  sequences: ['name TEXT PRIMARY KEY', 'value INTEGER NOT NULL'],
  agents: [
    'id INTEGER PRIMARY KEY',
    'hostname TEXT NOT NULL UNIQUE',
    'auth_token TEXT NOT NULL',
    'lease_duration_ms INTEGER NOT NULL DEFAULT 60000',
    'heartbeat_timeout_ms INTEGER NOT NULL DEFAULT 45000',
    `created_at ${INSTANT}`,
    `updated_at ${INSTANT}`,
    'last_heartbeat TIMESTAMP',
    'disabled BOOLEAN NOT NULL DEFAULT 0',
    'revoked BOOLEAN NOT NULL DEFAULT 0',
  ],
  tasks: [
    'id INTEGER PRIMARY KEY',
    'kind TEXT NOT NULL',
    'spec TEXT NOT NULL',
    "status TEXT NOT NULL DEFAULT 'queued'",
    `created_at ${INSTANT}`,
    `updated_at ${INSTANT}`,
  ],
  leases: [
    'id INTEGER PRIMARY KEY',
    'agent_id INTEGER NOT NULL',
    'task_id INTEGER NOT NULL',
    'kind TEXT NOT NULL',
    'spec TEXT NOT NULL',
    'lease_until TIMESTAMP NOT NULL',
    'status TEXT NOT NULL',
  ],
  agent_metrics: ['id INTEGER PRIMARY KEY', 'agent_id INTEGER NOT NULL', 'payload TEXT NOT NULL'],
  agent_configs: ['revision TEXT PRIMARY KEY', 'payload TEXT NOT NULL', 'signature TEXT NOT NULL'],
  concurrency_windows: ['scope TEXT NOT NULL', 'kind TEXT', 'target INTEGER', '"limit" INTEGER NOT NULL'],
};

/** Writes a database as the original control plane leaves it, or adds rows to it. */
export function writeOriginal(path: string, { agents = [], tasks = [], sequences = {} }: OriginalRows): void {
  const file = new Sqlite(path);
  for (const [name, columns] of Object.entries(TABLES))
    file.exec(`CREATE TABLE IF NOT EXISTS ${name} (${columns.join(', ')})`);
  const counter = file.prepare('INSERT OR REPLACE INTO sequences (name, value) VALUES (?, ?)');
  for (const [name, value] of Object.entries(sequences)) counter.run(name, value);
  const agent = file.prepare(
    `INSERT INTO agents (id, hostname, auth_token, created_at, last_heartbeat, disabled, revoked)
     VALUES (?, ?, ?, '2025-11-01 10:00:00', ?, ?, ?)`,
  );
  for (const { id, hostname, auth_token, last_heartbeat, disabled, revoked } of agents)
    agent.run(id, hostname, auth_token, last_heartbeat ?? null, disabled ?? 0, revoked ?? 0);
  const task = file.prepare('INSERT INTO tasks (id, kind, spec, status) VALUES (?, ?, ?, ?)');
  for (const { id, kind, spec, status } of tasks)
    task.run(
      id,
      kind,
      typeof spec === 'string' ? spec : JSON.stringify({ kind, ...(spec as object) }),
      status ?? 'queued',
    );
  file.close();
}
