import { createHash } from 'node:crypto';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { Injectable } from '@nestjs/common';
import { toTimestamp } from '../clock';
import { Database } from '../database/database';
import type { Statements, Transaction } from '../database/statements';
import { fail } from '../errors';
import type { OperatorIdentity } from '../http/control-plane-request';
import { olderThan, type Page, pageOf } from '../http/pagination';
import { parseTimestamp } from '../http/timestamps';
import type { AuditEntity } from './audit.entity';
import {
  advanceHead,
  appendEntry,
  fieldsOf,
  findUnrecordedTable,
  findUnrecordedToken,
  isUnrevoked,
  listEntries,
  selectEntries,
  selectForeignId,
  selectHash,
  selectHead,
} from './audit.queries';
import type { AuditQuery, AuditVerification, AuditView } from './operators.dto';

/** How many rows one step of a verification reads, so that requests are served between steps. */
const VERIFY_BATCH = 500;

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
    const head = await advanceHead(tx);
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
    await appendEntry(tx, { ...row, hash: chainHash(head.last_hash, row) });
  }

  /** Lists changes, newest first. */
  list(query: AuditQuery): Promise<Page<AuditView>> {
    return this.database.read(async (statements) => {
      const instant = (text: string | undefined) => (text === undefined ? undefined : parseTimestamp(text));
      const rows = await listEntries(
        statements,
        {
          action: query.action,
          subject: query.subject,
          operatorTokenId: query.operator_token_id,
          since: instant(query.since),
          until: instant(query.until),
          beforeId: query.cursor === undefined ? undefined : olderThan(query),
        },
        query.limit + 1,
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
  if (!(await isUnrevoked(tx, tokenId))) throw fail('ERR_UNAUTHORIZED');
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
    const found = await selectHash(statements, Number(id));
    if (found === undefined) return broken(Number(id), 'the entry known from elsewhere is missing');
    if (found !== hash) return broken(Number(id), 'this entry does not have the hash known from elsewhere');
  }
  const token = await findUnrecordedToken(statements);
  if (token !== undefined) return broken(null, `entries are missing: none is about operator token ${token}`);
  const table = await findUnrecordedTable(statements);
  if (table !== undefined) return broken(null, `entries are missing: none is about the rows of ${table}`);
  return verdict;
}

/** Verifies the chain alone. */
async function verifyChain(statements: Statements): Promise<AuditVerification> {
  const head = await selectHead(statements);
  const end = { last_id: head?.last_id ?? 0, last_hash: head?.last_hash ?? '' };
  if (!head) return { intact: false, ...end, broken_at: null, problem: 'the end of the log is not recorded' };
  const broken = (id: number, problem: string) => ({ intact: false, ...end, broken_at: id, problem });
  let hash = '';
  let next = 1;
  while (next <= end.last_id) {
    const rows = await selectEntries(statements, next, end.last_id, VERIFY_BATCH);
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
  const beyond = await selectForeignId(statements, end.last_id);
  // A change that was recorded meanwhile has moved the end, too.
  if (beyond !== undefined) {
    const now = await selectHead(statements);
    if (beyond < 1 || beyond > (now?.last_id ?? 0)) return broken(beyond, 'this entry was inserted later');
  }
  return { intact: true, ...end, broken_at: null, problem: null };
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
