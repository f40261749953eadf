import { Inject, Injectable } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { Clock, toTimestamp } from '../clock';
import { Database } from '../database/database';
import type { Transaction } from '../database/statements';
import { type ApiError, fail } from '../errors';
import type { Charge, OperatorIdentity } from '../http/control-plane-request';
import { olderThan, type Page, type PageQuery, pageOf } from '../http/pagination';
import { hashToken, isWellFormed, mintToken, sameHash } from '../http/tokens';
import { AuditLog } from '../operators/audit-log';
import { SETTINGS, type Settings } from '../settings';
import { Lifecycle } from '../telemetry/lifecycle';
import type {
  CreatedEnrollmentToken,
  CreateEnrollmentTokenRequest,
  EnrollmentTokenView,
} from './enrollment.dto';
import type { EnrollmentTokenEntity } from './enrollment-token.entity';
import type { Labels } from './labels';

/** What a registration showed: nothing, one of the setting's tokens, or the hash of one that may have been issued. */
export type Shown = 'nothing' | 'setting' | { readonly hash: string };

/** What an issued token does for an agent. */
export interface Enrollment {
  readonly tokenId: number;
  /** Whether the agent is new to the token: then this was a use of it, and its labels are given. */
  readonly counted: boolean;
  readonly labels: Labels;
}

/** A token that is neither withdrawn nor expired at an instant, `$2`. */
const WORKS = 'revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)';

/** How many tokens are remembered. */
const MAX_KNOWN = 1_000;

/** Owns enrollment_tokens: with what agents that nobody knows yet prove that they belong to the fleet. */
@Injectable()
export class EnrollmentService {
  /** Hashes of tokens that were right once: they may be looked up where others are guessing. */
  private readonly known = new LRUCache<string, true>({ max: MAX_KNOWN });

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly audit: AuditLog,
    @Inject(SETTINGS) private readonly settings: Settings,
    private readonly lifecycle: Lifecycle,
  ) {}

  /** Learns which tokens work. */
  async onModuleInit(): Promise<void> {
    if (!this.lifecycle.serves) return;
    const rows = await this.database.read((statements) =>
      statements.rows<{ token_hash: string }>(
        `SELECT token_hash FROM enrollment_tokens WHERE ${WORKS} ORDER BY id DESC LIMIT $1`,
        MAX_KNOWN,
        this.clock.now(),
      ),
    );
    for (const { token_hash: hash } of rows) this.known.set(hash, true);
  }

  /**
   * Judges what needs no database: a typo shows by its checksum.
   * @param charge asked before the token is looked up
   * @throws ERR_UNAUTHORIZED a token is needed and missing, or it can't be one
   */
  inspect(shown: string | undefined, charge: Charge): Shown {
    const hash = hashToken(shown ?? '');
    let known = false;
    // Every one is compared, so that the time does not tell which came close.
    for (const token of this.settings.enrollmentTokens) known = sameHash(hashToken(token), hash) || known;
    if (known) return 'setting';
    if (shown === undefined ? this.settings.registration === 'token' : !isWellFormed('dcpe_', shown))
      throw refused();
    if (shown === undefined) return 'nothing';
    if (!this.known.has(hash)) charge.beforeLookup();
    return { hash };
  }

  /**
   * Uses an issued token in the transaction of a registration. A use is an agent that is new to it: who enrolled with
   * it before may show it again, also when it is used up, so that a registration whose answer was lost can be repeated.
   * @param enrolledBy the token that the agent came with last; null where it is new, or never had one
   * @param lookAgain finds that out once more, where the token is used up: the agent may have come in at the same time
   * @param charge charged to the address where this throws
   * @throws ERR_UNAUTHORIZED unknown, expired, withdrawn or used up, in the same words
   */
  async use(
    tx: Transaction,
    hash: string,
    enrolledBy: number | null,
    lookAgain: () => Promise<number | null>,
    charge: Charge,
  ): Promise<Enrollment> {
    const row = await tx.first<Pick<EnrollmentTokenEntity, 'id' | 'labels'>>(
      `SELECT id, labels FROM enrollment_tokens WHERE token_hash = $1 AND ${WORKS}`,
      hash,
      tx.now,
    );
    if (!row) throw refusedBy(charge);
    let counted = row.id !== enrolledBy;
    // The condition is part of the change: of many at once no more than are left get through.
    const left =
      !counted ||
      (await tx.run(
        `UPDATE enrollment_tokens SET uses = uses + 1
         WHERE id = $1 AND ${WORKS} AND (max_uses IS NULL OR uses < max_uses)`,
        row.id,
        tx.now,
      )) === 1;
    if (!left) {
      if ((await lookAgain()) !== row.id) throw refusedBy(charge);
      counted = false;
    }
    tx.afterCommit(() => this.known.set(hash, true));
    return { tokenId: row.id, counted, labels: JSON.parse(row.labels) as Labels };
  }

  /** Makes a token. Only its hash is kept, so this answer is the one that shows it. */
  create(
    by: OperatorIdentity,
    { name, labels, max_uses: maxUses, expires_in: expiresIn }: CreateEnrollmentTokenRequest,
  ): Promise<CreatedEnrollmentToken> {
    const token = mintToken('dcpe_');
    const hash = hashToken(token);
    return this.database.write(async (tx) => {
      const { now } = tx;
      const [row] = await tx.rows<EnrollmentTokenEntity>(
        `INSERT INTO enrollment_tokens (name, labels, token_hash, max_uses, uses, created_at, expires_at)
         VALUES ($1, $2, $3, $4, 0, $5, $6) RETURNING *`,
        name,
        JSON.stringify(labels ?? {}),
        hash,
        maxUses ?? null,
        now,
        expiresIn == null ? null : now + expiresIn * 1_000,
      );
      const view = viewOf(row as EnrollmentTokenEntity);
      await this.audit.record(tx, by, {
        action: 'enrollment-token.create',
        subject: `enrollment-token/${view.id}`,
        after: { name, labels: view.labels, max_uses: view.max_uses, expires_at: view.expires_at },
      });
      tx.afterCommit(() => this.known.set(hash, true));
      return { ...view, token };
    });
  }

  /** Lists tokens, newest first; those that no longer work too. */
  list(query: PageQuery): Promise<Page<EnrollmentTokenView>> {
    return this.database.read(async (statements) => {
      const rows = await statements.rows<EnrollmentTokenEntity>(
        'SELECT * FROM enrollment_tokens WHERE id < $1 ORDER BY id DESC LIMIT $2',
        olderThan(query),
        query.limit + 1,
      );
      return pageOf(rows, query.limit, (row) => row.id, viewOf);
    });
  }

  /**
   * Withdraws a token, effective when it is answered. The same again changes nothing.
   * @throws ERR_NOT_FOUND there is no such token
   */
  withdraw(by: OperatorIdentity, id: number): Promise<void> {
    return this.database.write(async (tx) => {
      const token = await tx.first<EnrollmentTokenEntity>(
        'SELECT * FROM enrollment_tokens WHERE id = $1',
        id,
      );
      if (!token) throw fail('ERR_NOT_FOUND', { enrollment_token_id: id });
      if (token.revoked_at !== null) return;
      await tx.run('UPDATE enrollment_tokens SET revoked_at = $2 WHERE id = $1', id, tx.now);
      await this.audit.record(tx, by, {
        action: 'enrollment-token.withdraw',
        subject: `enrollment-token/${id}`,
        before: { name: token.name, uses: token.uses },
      });
    });
  }
}

/** Charges the look-up to the address and makes the answer. */
function refusedBy(charge: Charge): ApiError {
  charge.failure();
  return refused();
}

/** The one answer for every token that is not taken. */
function refused(): ApiError {
  return fail('ERR_UNAUTHORIZED', undefined, { message: 'A valid enrollment token is needed.' });
}

function viewOf(row: EnrollmentTokenEntity): EnrollmentTokenView {
  return {
    id: row.id,
    name: row.name,
    labels: JSON.parse(row.labels) as Labels,
    max_uses: row.max_uses,
    uses: row.uses,
    created_at: toTimestamp(row.created_at),
    expires_at: toTimestamp(row.expires_at),
    revoked_at: toTimestamp(row.revoked_at),
  };
}
