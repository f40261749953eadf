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
import {
  countTokenUse,
  findToken,
  findWorkingToken,
  insertToken,
  listTokens,
  listWorkingTokens,
  markTokenRevoked,
} from './enrollment.queries';
import type { EnrollmentTokenEntity } from './enrollment-token.entity';
import type { Labels } from './labels';

/**
 * The enrollment token of a registration: none, one of the setting's, or the hash of one that may have been issued.
 */
export type Shown = 'nothing' | 'setting' | { readonly hash: string };

/** The effect of an issued token on an agent. */
export interface Enrollment {
  readonly tokenId: number;
  readonly tokenHash: string;
  /** Whether the agent did not use this token last: then this counts as a use, and its labels are set. */
  readonly isCounted: boolean;
  readonly labels: Labels;
}

/** The most tokens in memory. */
const MAX_KNOWN = 1_000;

/** Owns enrollment_tokens, by which new agents prove that they belong to the fleet. */
@Injectable()
export class EnrollmentService {
  /** Hashes of tokens that were valid once: they may be looked up even if others at the address are guessing. */
  private readonly known = new LRUCache<string, true>({ max: MAX_KNOWN });

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly audit: AuditLog,
    @Inject(SETTINGS) private readonly settings: Settings,
    private readonly lifecycle: Lifecycle,
  ) {}

  /** Loads the valid tokens. */
  async onModuleInit(): Promise<void> {
    if (!this.lifecycle.serves) return;
    const hashes = await this.database.read((statements) =>
      listWorkingTokens(statements, MAX_KNOWN, this.clock.now()),
    );
    for (const hash of hashes) this.known.set(hash, true);
  }

  /**
   * Checks a token without the database: the checksum reveals a typo.
   * @param charge charged before the token is looked up
   * @throws ERR_UNAUTHORIZED a token is needed and missing, or malformed
   */
  inspect(shown: string | undefined, charge: Charge): Shown {
    const hash = hashToken(shown ?? '');
    let known = false;
    // Compare all of them, so that the time does not reveal which one is similar.
    for (const token of this.settings.enrollmentTokens) known = sameHash(hashToken(token), hash) || known;
    if (known) return 'setting';
    if (shown === undefined ? this.settings.registration === 'token' : !isWellFormed('dcpe_', shown))
      throw refused();
    if (shown === undefined) return 'nothing';
    if (!this.known.has(hash)) charge.beforeLookup();
    return { hash };
  }

  /**
   * Looks an issued token up in the transaction of a registration that has locked its agent. An agent that enrolled
   * with it before may show it again, also if it is used up, so that a registration whose answer was lost can be
   * repeated.
   * @param enrolledBy the token that the agent showed last; null if it is new, or never showed one
   * @param charge charged to the address if this throws
   * @throws ERR_UNAUTHORIZED unknown, expired, revoked or used up, with the same message
   */
  async requireUsable(
    tx: Transaction,
    hash: string,
    enrolledBy: number | null,
    charge: Charge,
  ): Promise<Enrollment> {
    const row = await findWorkingToken(tx, hash);
    const isCounted = row?.id !== enrolledBy;
    if (!row || (isCounted && row.max_uses !== null && row.uses >= row.max_uses)) throw refusedBy(charge);
    return { tokenId: row.id, tokenHash: hash, isCounted, labels: JSON.parse(row.labels) as Labels };
  }

  /**
   * Counts a use of a token, in the same transaction.
   * @param charge charged to the address if this throws
   * @throws ERR_UNAUTHORIZED it was used up or revoked since it was looked up
   */
  async use(tx: Transaction, { tokenId, tokenHash, isCounted }: Enrollment, charge: Charge): Promise<void> {
    if (isCounted && !(await countTokenUse(tx, tokenId))) throw refusedBy(charge);
    tx.afterCommit(() => this.known.set(tokenHash, true));
  }

  /** Creates a token. Only its hash is stored, so only this answer shows it. */
  create(
    by: OperatorIdentity,
    { name, labels, max_uses: maxUses, expires_in: expiresIn }: CreateEnrollmentTokenRequest,
  ): Promise<CreatedEnrollmentToken> {
    const token = mintToken('dcpe_');
    const hash = hashToken(token);
    return this.database.write(async (tx) => {
      const row = await insertToken(tx, {
        name,
        labels: JSON.stringify(labels ?? {}),
        token_hash: hash,
        max_uses: maxUses ?? null,
        expires_at: expiresIn == null ? null : tx.now + expiresIn * 1_000,
      });
      const view = viewOf(row);
      await this.audit.record(tx, by, {
        action: 'enrollment-token.create',
        subject: `enrollment-token/${view.id}`,
        after: { name, labels: view.labels, max_uses: view.max_uses, expires_at: view.expires_at },
      });
      tx.afterCommit(() => this.known.set(hash, true));
      return { ...view, token };
    });
  }

  /** Lists tokens, newest first, including those that no longer work. */
  list(query: PageQuery): Promise<Page<EnrollmentTokenView>> {
    return this.database.read(async (statements) => {
      const rows = await listTokens(statements, olderThan(query), query.limit + 1);
      return pageOf(rows, query.limit, (row) => row.id, viewOf);
    });
  }

  /**
   * Revokes a token; in force when this resolves. Repeating it changes nothing.
   * @throws ERR_NOT_FOUND there is no such token
   */
  revoke(by: OperatorIdentity, id: number): Promise<void> {
    return this.database.write(async (tx) => {
      const token = await findToken(tx, id);
      if (!token) throw fail('ERR_NOT_FOUND', { enrollment_token_id: id });
      if (token.revoked_at !== null) return;
      await markTokenRevoked(tx, id);
      await this.audit.record(tx, by, {
        action: 'enrollment-token.withdraw',
        subject: `enrollment-token/${id}`,
        before: { name: token.name, uses: token.uses },
      });
    });
  }
}

/** Charges the look-up to the address and creates the error. */
function refusedBy(charge: Charge): ApiError {
  charge.failure();
  return refused();
}

/** Creates the same error for every token that is not valid. */
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
