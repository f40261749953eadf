import { createHash } from 'node:crypto';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { Injectable } from '@nestjs/common';
import { toTimestamp } from '../clock';
import { Conditions } from '../database/conditions';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { fail } from '../errors';
import type { OperatorIdentity } from '../http/control-plane-request';
import { olderThan, type Page, pageOf } from '../http/pagination';
import { parseTimestamp } from '../http/timestamps';
import type { AuditEntity, AuditHeadEntity } from './audit.entity';
import type { AuditQuery, AuditVerification, AuditView } from './operators.dto';

/** How many rows one step of a verification reads, so that requests are served between steps. */
const VERIFY_BATCH = 500;

/** An instant after all others. */
const MAX_INSTANT = Number.MAX_SAFE_INTEGER;

/** The identity under which the process records its own changes. */
export const PROCESS: OperatorIdentity = {
  tokenId: 0,
  name: 'control-plane',
  role: 'admin',
  address: 'local',
};

/** A change to record: an action on a subject. */
export interface Change {
  /** A noun and a verb: `agent.disable`. */
  action: string;
  /** A noun and an id: `agent/12`. */
  subject: string;
  /** The fields that changed; never a secret. */
  before?: object;
  after?: object;
}

/**
 * Owns audit_log and audit_head: the record of all changes by operators. Rows are only added, and chained by hashes, so
 * that a verification finds rows that were altered, removed or inserted later. An attacker with write access to the whole
 * database can compute the chain again: to detect that, keep a copy of `last_hash` elsewhere.
 */
@Injectable()
export class AuditLog {
  constructor(private readonly database: Database) {}

  /**
   * Records a change in the transaction that makes it: both are stored or neither.
   * @throws ERR_UNAUTHORIZED the operator's token was revoked meanwhile, on any replica
   */
  async record(tx: Transaction, by: OperatorIdentity, change: Change): Promise<void> {
    // The update locks the end of the chain, so that concurrent changes are appended one after the other.
    const head = await tx.first<AuditHeadEntity>(
      'UPDATE audit_head SET last_id = last_id + 1 WHERE id = 1 RETURNING id, last_id, last_hash',
    );
    if (!head) throw new Error('audit_head has lost its row; restore the database from a backup');
    // Checked under that lock, which a revocation takes too: a replica that missed the notification must not write.
    if (by.tokenId > 0) await requireValid(tx, by.tokenId);
    const row: Omit<AuditEntity, 'hash'> = {
      id: head.last_id,
      at: tx.now,
      operator_token_id: by.tokenId,
      operator_name: by.name,
      address: by.address,
      action: change.action,
      subject: change.subject,
      before: change.before ? JSON.stringify(change.before) : null,
      after: change.after ? JSON.stringify(change.after) : null,
    };
    const hash = chainHash(head.last_hash, row);
    await tx.run(
      `INSERT INTO audit_log (id, at, operator_token_id, operator_name, address, action, subject, "before", "after", hash)
       VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
      ...fieldsOf(row),
      hash,
    );
    await tx.run('UPDATE audit_head SET last_hash = $1 WHERE id = 1', hash);
  }

  /** Lists changes, newest first. */
  list(query: AuditQuery): Promise<Page<AuditView>> {
    return this.database.read(async (statements) => {
      const instant = (text: string | undefined) => (text === undefined ? undefined : parseTimestamp(text));
      // By time first, so that each filter has an index for its range. Ids have the same order unless the clock was set back.
      const filters = new Conditions()
        .add(query.action, (value) => `action = ${value}`)
        .add(query.subject, (value) => `subject = ${value}`)
        .add(query.operator_token_id, (value) => `operator_token_id = ${value}`)
        .add(instant(query.since), (value) => `at >= ${value}`)
        .add(instant(query.until), (value) => `at < ${value}`)
        .add(
          query.cursor === undefined ? undefined : olderThan(query),
          (id) => `(at, id) < (coalesce((SELECT at FROM audit_log WHERE id = ${id}), ${MAX_INSTANT}), ${id})`,
        );
      const limit = filters.bind(query.limit + 1);
      const rows = await statements.rows<AuditEntity>(
        `SELECT * FROM audit_log ${filters.where} ORDER BY at DESC, id DESC LIMIT ${limit}`,
        ...filters.values,
      );
      return pageOf(rows, query.limit, (row) => row.id, viewOf);
    });
  }

  /**
   * Verifies the chain from its first row to its end, and reports where it breaks.
   * @param known `last_id:last_hash` of an earlier verification, kept elsewhere: the log must still contain that entry
   */
  verify(known?: string): Promise<AuditVerification> {
    return this.database.read((statements) => verifyLog(statements, known));
  }
}

/** @throws ERR_UNAUTHORIZED the token was revoked */
async function requireValid(tx: Transaction, tokenId: number): Promise<void> {
  const token = await tx.first(
    'SELECT id FROM operator_tokens WHERE id = $1 AND revoked_at IS NULL',
    tokenId,
  );
  if (!token) throw fail('ERR_UNAUTHORIZED');
}

/**
 * Verifies the log on any connection: the chain, the known entry, and that rows of other tables have their entries. The
 * last check finds a log that was emptied or truncated: what remains is a valid chain, but entries are missing from it.
 */
export async function verifyLog(statements: Statements, known?: string): Promise<AuditVerification> {
  const verdict = await verifyChain(statements);
  if (!verdict.intact) return verdict;
  const broken = (broken_at: number | null, problem: string) => ({
    ...verdict,
    intact: false,
    broken_at,
    problem,
  });
  if (known !== undefined) {
    const [id, hash] = known.split(':') as [string, string];
    const entry = await statements.first<Pick<AuditEntity, 'hash'>>(
      'SELECT hash FROM audit_log WHERE id = $1',
      Number(id),
    );
    if (!entry) return broken(Number(id), 'the entry known from elsewhere is missing');
    if (entry.hash !== hash)
      return broken(Number(id), 'this entry does not have the hash known from elsewhere');
  }
  const unrecorded = await statements.first<{ id: number }>(
    `SELECT t.id FROM operator_tokens t
     WHERE NOT EXISTS (SELECT 1 FROM audit_log a WHERE a.subject = 'operator-token/' || t.id)
     ORDER BY t.id LIMIT 1`,
  );
  if (unrecorded) return broken(null, `entries are missing: none is about operator token ${unrecorded.id}`);
  for (const { table, action, where } of AUDITED_TABLES) {
    const row = await statements.first(
      `SELECT 1 AS found FROM ${table} WHERE ${where}
       AND NOT EXISTS (SELECT 1 FROM audit_log WHERE ${action}) LIMIT 1`,
    );
    if (row) return broken(null, `entries are missing: none is about the rows of ${table}`);
  }
  return verdict;
}

/**
 * Tables of other folders whose rows always have an entry with this action. They are only read, and here because a
 * database file is also verified without the application.
 */
const AUDITED_TABLES = [
  { table: 'agent_configs', where: '1 = 1', action: `action LIKE 'config.%'` },
  { table: 'concurrency_windows', where: '1 = 1', action: `action = 'concurrency-limits.set'` },
  { table: 'enrollment_tokens', where: '1 = 1', action: `action = 'enrollment-token.create'` },
] as const;

/** Verifies the chain alone. */
async function verifyChain(statements: Statements): Promise<AuditVerification> {
  const head = await statements.first<AuditHeadEntity>('SELECT * FROM audit_head WHERE id = 1');
  const end = { last_id: head?.last_id ?? 0, last_hash: head?.last_hash ?? '' };
  if (!head) return { intact: false, ...end, broken_at: null, problem: 'the end of the log is not recorded' };
  const broken = (id: number, problem: string) => ({ intact: false, ...end, broken_at: id, problem });
  let hash = '';
  let next = 1;
  while (next <= end.last_id) {
    const rows = await statements.rows<AuditEntity>(
      'SELECT * FROM audit_log WHERE id >= $1 AND id <= $2 ORDER BY id LIMIT $3',
      next,
      end.last_id,
      VERIFY_BATCH,
    );
    // SQLite reads and hashing block the event loop: yield, so that requests are answered meanwhile.
    await nextTurn();
    if (rows.length === 0) return broken(next, 'this entry and all after it are missing');
    for (const row of rows) {
      if (row.id !== next) return broken(next, 'this entry is missing');
      hash = chainHash(hash, row);
      if (hash !== row.hash) return broken(next, 'this entry, or the hash of the one before, was altered');
      next++;
    }
  }
  if (hash !== end.last_hash) return broken(end.last_id, 'the end of the log is not the one recorded');
  const beyond = await statements.first<{ id: number }>(
    'SELECT min(id) AS id FROM audit_log WHERE id < 1 OR id > $1',
    end.last_id,
  );
  // A change that was recorded meanwhile has moved the end, too.
  if (beyond?.id != null) {
    const now = await statements.first<AuditHeadEntity>('SELECT * FROM audit_head WHERE id = 1');
    if (beyond.id < 1 || beyond.id > (now?.last_id ?? 0))
      return broken(beyond.id, 'this entry was inserted later');
  }
  return { intact: true, ...end, broken_at: null, problem: null };
}

function fieldsOf(row: Omit<AuditEntity, 'hash'>) {
  return [
    row.id,
    row.at,
    row.operator_token_id,
    row.operator_name,
    row.address,
    row.action,
    row.subject,
    row.before,
    row.after,
  ] as const;
}

function chainHash(previous: string, row: Omit<AuditEntity, 'hash'>): string {
  return createHash('sha256')
    .update(JSON.stringify([previous, ...fieldsOf(row)]))
    .digest('hex');
}

function viewOf(row: AuditEntity): AuditView {
  return {
    id: row.id,
    at: toTimestamp(row.at),
    operator_token_id: row.operator_token_id || null,
    operator_name: row.operator_name,
    address: row.address,
    action: row.action,
    subject: row.subject,
    before: row.before === null ? null : JSON.parse(row.before),
    after: row.after === null ? null : JSON.parse(row.after),
    hash: row.hash,
  };
}
