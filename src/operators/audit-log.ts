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

/** So many rows are read at once to verify the chain, so that requests get their turn in between. */
const VERIFIED_AT_ONCE = 500;

/** An instant after all others. */
const ALWAYS = Number.MAX_SAFE_INTEGER;

/** What the process does by itself is recorded under this name. */
export const PROCESS: OperatorIdentity = {
  tokenId: 0,
  name: 'control-plane',
  role: 'admin',
  address: 'local',
};

/** What was done to what. */
export interface Change {
  /** Subject's noun and verb: `agent.disable`. */
  action: string;
  /** Noun and id: `agent/12`. */
  subject: string;
  /** In short, and never a secret. */
  before?: object;
  after?: object;
}

/**
 * Owns audit_log and audit_head: who changed what. Rows are only added, and chained by hashes, so that one that is
 * altered, removed or slipped in later shows. It does not withstand somebody who can write the whole database and
 * computes the chain again: keep a copy of `last_hash` elsewhere against that.
 */
@Injectable()
export class AuditLog {
  constructor(private readonly database: Database) {}

  /**
   * Records a change in the transaction that makes it: both are stored or neither.
   * @throws ERR_UNAUTHORIZED the operator's token was revoked meanwhile, on whatever replica
   */
  async record(tx: Transaction, by: OperatorIdentity, change: Change): Promise<void> {
    // The update locks the chain's end, so that two changes at once get their places one after the other.
    const head = await tx.first<AuditHeadEntity>(
      'UPDATE audit_head SET last_id = last_id + 1 WHERE id = 1 RETURNING id, last_id, last_hash',
    );
    if (!head) throw new Error('audit_head has lost its row; restore the database from a backup');
    // Behind that lock, which a revocation takes too: a replica that hears of none for a while must not go on writing.
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
    const hash = chained(head.last_hash, row);
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
      // By time first, which is their order but for a clock that was set back: so each filter has an index for its range.
      const filters = new Conditions()
        .add(query.action, (value) => `action = ${value}`)
        .add(query.subject, (value) => `subject = ${value}`)
        .add(query.operator_token_id, (value) => `operator_token_id = ${value}`)
        .add(instant(query.since), (value) => `at >= ${value}`)
        .add(instant(query.until), (value) => `at < ${value}`)
        .add(
          query.cursor === undefined ? undefined : olderThan(query),
          (id) => `(at, id) < (coalesce((SELECT at FROM audit_log WHERE id = ${id}), ${ALWAYS}), ${id})`,
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
   * Follows the chain from its first row to its end, and tells where it breaks.
   * @param known `last_id:last_hash` of an earlier verification that was kept elsewhere: the log must still hold it
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
 * The same on any connection: the chain, that it holds the entry that is known, and that it accounts for what can't be there
 * without an entry. A log that was emptied or cut off with its end is a whole chain, but a shorter one than the rest of
 * the database tells of.
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
    if (!entry) return broken(Number(id), 'the entry that is known from elsewhere is missing');
    if (entry.hash !== hash)
      return broken(Number(id), 'this entry has another hash than the one that is known from elsewhere');
  }
  const unrecorded = await statements.first<{ id: number }>(
    `SELECT t.id FROM operator_tokens t
     WHERE NOT EXISTS (SELECT 1 FROM audit_log a WHERE a.subject = 'operator-token/' || t.id)
     ORDER BY t.id LIMIT 1`,
  );
  if (unrecorded) return broken(null, `entries are missing: none tells of operator token ${unrecorded.id}`);
  for (const { table, action, where } of RECORDED) {
    const row = await statements.first(
      `SELECT 1 AS there FROM ${table} WHERE ${where}
       AND NOT EXISTS (SELECT 1 FROM audit_log WHERE ${action}) LIMIT 1`,
    );
    if (row) return broken(null, `entries are missing: none tells of what ${table} holds`);
  }
  return verdict;
}

/** Rows of others that are not there unless the log has such an entry. Read only, and here so that a file alone can be verified. */
const RECORDED = [
  { table: 'agent_configs', where: '1 = 1', action: `action LIKE 'config.%'` },
  { table: 'concurrency_windows', where: 'ceiling IS NOT NULL', action: `action = 'concurrency-limits.set'` },
  { table: 'enrollment_tokens', where: '1 = 1', action: `action = 'enrollment-token.create'` },
] as const;

/** Follows the chain alone. */
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
      VERIFIED_AT_ONCE,
    );
    // SQLite reads and the hashes are computed without a pause: without this one, no request would be answered meanwhile.
    await nextTurn();
    if (rows.length === 0) return broken(next, 'this entry and all after it are missing');
    for (const row of rows) {
      if (row.id !== next) return broken(next, 'this entry is missing');
      hash = chained(hash, row);
      if (hash !== row.hash) return broken(next, 'this entry, or the hash of the one before, was altered');
      next++;
    }
  }
  if (hash !== end.last_hash) return broken(end.last_id, 'the end of the log is not the one recorded');
  const beyond = await statements.first<{ id: number }>(
    'SELECT min(id) AS id FROM audit_log WHERE id < 1 OR id > $1',
    end.last_id,
  );
  // A change that was recorded meanwhile moved the end with it.
  if (beyond?.id != null) {
    const now = await statements.first<AuditHeadEntity>('SELECT * FROM audit_head WHERE id = 1');
    if (beyond.id < 1 || beyond.id > (now?.last_id ?? 0))
      return broken(beyond.id, 'this entry was slipped in');
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

function chained(previous: string, row: Omit<AuditEntity, 'hash'>): string {
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
