import { randomBytes } from 'node:crypto';
import { Injectable, Logger, type OnModuleInit } from '@nestjs/common';
import type { JWK } from 'jose';
import { Clock, toTimestamp } from '../clock';
import { Database } from '../database/database';
import { Idempotency, type IdempotentCall } from '../database/idempotency';
import type { Statements, Transaction } from '../database/statements';
import { fail } from '../errors';
import type { OperatorIdentity } from '../http/control-plane-request';
import { olderThan, type Page, type PageQuery, pageOf } from '../http/pagination';
import { AuditLog, PROCESS } from '../operators/audit-log';
import { SettingsError } from '../settings';
import { Lifecycle } from '../telemetry/lifecycle';
import { acceptConfig, bundleText, signedText, type UnsignedBundle } from './bundle';
import { changesBetween } from './changes';
import {
  type ConfigBundle,
  type ConfigDetail,
  type ConfigDiff,
  type ConfigView,
  DEFAULT_LIFETIME_S,
  type PublishRequest,
  type RollbackRequest,
  type Rollout,
} from './config.dto';
import type { ConfigEntity } from './config.entity';
import {
  type ConfigSummary,
  findConfig,
  findConfigBefore,
  findNewestConfig,
  insertConfig,
  listConfigs,
  selectLastSeq,
} from './config.queries';
import { SigningKeys } from './signing-keys';

/** The bundle that agents get now. */
export interface BundleInForce {
  readonly revision: string;
  /** The bundle as JSON, ready to be sent. */
  readonly text: string;
}

/** Counts the progress of each revision's roll-out. */
export type RolloutCounter = (
  statements: Statements,
  revisions: readonly string[],
) => Promise<Map<string, Rollout>>;

/** A configuration to publish, and the operator that publishes it. */
interface Issue {
  readonly by: OperatorIdentity;
  readonly action: 'config.publish' | 'config.rollback' | 'config.re-sign';
  /** Canonical JSON. */
  readonly config: string;
  readonly lifetimeMs: number;
  /** The earlier revision that the content comes from, if any. */
  readonly from?: string;
  readonly call?: IdempotentCall;
}

/** The announcement of a new bundle; its message is the seq. */
const PUBLISHED = 'config';

/**
 * Owns agent_configs: signed bundles of configuration, numbered by `seq`. The newest is in force until it expires; after
 * that none is, because agents refuse a `seq` below theirs. The newest is cached in memory, so that agents' requests read
 * nothing from the database. Rows never change and are never deleted.
 */
@Injectable()
export class ConfigService implements OnModuleInit {
  private readonly logger = new Logger('Config');
  private newest: (BundleInForce & { readonly seq: number; readonly expiresAt: number }) | undefined;
  private countRollout: RolloutCounter = () => Promise.resolve(new Map());

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly keys: SigningKeys,
    private readonly idempotency: Idempotency,
    private readonly audit: AuditLog,
    private readonly lifecycle: Lifecycle,
  ) {
    database.onAnnouncement(PUBLISHED, (seq) => this.catchUp(Number(seq)));
    database.onGap(() => this.catchUp());
  }

  /**
   * Loads the bundle in force. Publishes it again if the key that signed it is gone, or if it comes from a backup: agents
   * may have seen a later `seq`.
   * @throws SettingsError replicas share the database, and this one lacks the key of the bundle in force
   */
  async onModuleInit(): Promise<void> {
    const row = await this.loadNewest();
    if (!row || !this.lifecycle.serves) return;
    const leftMs = row.expires_at - this.clock.now();
    const newestSeq = row.last_seq;
    const restored = row.seq < newestSeq;
    if (leftMs <= 0 || (!restored && this.keys.jwks.some(({ kid }) => kid === row.kid))) return;
    // Replicas with different keys would keep signing each other's bundles again. After a restore all were stopped, so
    // the first to start decides.
    if (this.database.mayHaveReplicas && !restored) {
      throw new SettingsError(
        `CONTROL_PLANE_SIGNING_KEY_FILE lacks the key ${row.kid} of the configuration in force. All replicas need the ` +
          'same keys; to remove one, first publish with another. If it is lost, stop all replicas and run ' +
          '"control-plane restored".',
      );
    }
    // Agents verify with the keys that are published now. Do not keep the old one: it may have been removed after a leak.
    const { revision } = await this.issue({
      by: PROCESS,
      action: 'config.re-sign',
      config: row.config,
      lifetimeMs: leftMs,
      from: row.revision,
      // Of replicas that start together, only one publishes.
      call: this.idempotency.call('configs:re-sign', String(newestSeq), row.revision),
    });
    await this.loadNewest();
    this.logger.warn(
      { kid: this.keys.kid, revision },
      restored
        ? 'published the configuration again after a restore from a backup'
        : 'signed the configuration in force again, because its key is gone',
    );
  }

  /** Registers the function that counts the progress of roll-outs. */
  countRolloutWith(counter: RolloutCounter): void {
    this.countRollout = counter;
  }

  /**
   * Signs a configuration, stores it durably and puts it in force; it replaces the previous one. A repeated call with the
   * same key returns the same bundle and publishes nothing.
   * @throws ERR_VALIDATION the configuration is too large, or has fields that are not portable JSON; names each
   * @throws ERR_CONFLICT the key was used for another request
   */
  publish(by: OperatorIdentity, request: PublishRequest, key: string | undefined): Promise<ConfigBundle> {
    const config = acceptConfig(request.config);
    const lifetimeMs = lifetimeOf(request);
    const call = this.idempotentCall(by, key, ['publish', config, lifetimeMs]);
    return this.issue({ by, action: 'config.publish', config, lifetimeMs, call });
  }

  /**
   * Publishes the content of an earlier bundle again. It gets a new `seq`, because agents refuse a lower one.
   * @throws ERR_NOT_FOUND there is no such revision
   * @throws ERR_CONFLICT the key was used for another request
   */
  async rollback(
    by: OperatorIdentity,
    revision: string,
    request: RollbackRequest,
    key: string | undefined,
  ): Promise<ConfigBundle> {
    const lifetimeMs = lifetimeOf(request);
    const call = this.idempotentCall(by, key, ['rollback', revision, lifetimeMs]);
    const { config } = await this.database.read((statements) => findBundle(statements, revision));
    return this.issue({ by, action: 'config.rollback', config, lifetimeMs, from: revision, call });
  }

  /** Lists bundles without their content, newest first. */
  list(query: PageQuery): Promise<Page<ConfigView>> {
    return this.database.read(async (statements) => {
      const rows = await listConfigs(statements, olderThan(query), query.limit + 1);
      const page = pageOf(rows, query.limit, (row) => row.seq);
      return { items: await this.viewsOf(statements, page.items), next_cursor: page.next_cursor };
    });
  }

  /**
   * Returns a bundle with its content.
   * @throws ERR_NOT_FOUND there is no such revision
   */
  get(revision: string): Promise<ConfigDetail> {
    return this.database.read(async (statements) => {
      const row = await findBundle(statements, revision);
      const [view] = (await this.viewsOf(statements, [row])) as [ConfigView];
      return { ...view, config: JSON.parse(row.config), signature: row.signature };
    });
  }

  /**
   * Compares a bundle with the previous one; the first is compared with an empty object.
   * @throws ERR_NOT_FOUND there is no such revision
   */
  diff(revision: string): Promise<ConfigDiff> {
    return this.database.read(async (statements) => {
      const row = await findBundle(statements, revision);
      const previous = await findConfigBefore(statements, row.seq);
      return {
        revision,
        previous_revision: previous?.revision ?? null,
        changes: changesBetween(JSON.parse(previous?.config ?? '{}'), JSON.parse(row.config)),
      };
    });
  }

  /** Returns the revision in force, from memory; undefined if there is none. */
  currentRevision(): string | undefined {
    return this.inForce()?.revision;
  }

  /** Returns when the revision in force expires, in ms since the epoch; undefined if there is none. */
  expiryInForce(): number | undefined {
    return this.inForce()?.expiresAt;
  }

  /**
   * Returns the bundle in force, from memory.
   * @throws ERR_NOT_FOUND retryable: nothing was published yet, or the newest bundle has expired
   */
  current(): BundleInForce {
    const bundle = this.inForce();
    if (!bundle)
      throw fail('ERR_NOT_FOUND', undefined, {
        message: 'There is no configuration in force; ask again later.',
        retryable: true,
      });
    return bundle;
  }

  /** Returns the public keys that verify bundles. */
  verifyingKeys(): JWK[] {
    return this.keys.jwks;
  }

  private inForce(): (BundleInForce & { readonly expiresAt: number }) | undefined {
    return this.newest && this.newest.expiresAt > this.clock.now() ? this.newest : undefined;
  }

  private idempotentCall(by: OperatorIdentity, key: string | undefined, request: readonly unknown[]) {
    return key === undefined ? undefined : this.idempotency.call(`configs:${by.tokenId}`, key, request);
  }

  /**
   * Signs and stores a bundle. It is signed before the transaction, because a transaction may await nothing but the
   * database. If another call has taken the seq by then, it is signed again with the next one.
   */
  private async issue(issue: Issue): Promise<ConfigBundle> {
    for (;;) {
      const row = await this.signNext(issue);
      const stored = await this.database.write((tx) => this.store(tx, row, issue));
      if (stored) return JSON.parse(bundleText(stored));
    }
  }

  private async signNext({ config, lifetimeMs }: Issue): Promise<ConfigEntity> {
    const issuedAt = this.clock.now();
    const bundle: UnsignedBundle = {
      revision: randomBytes(8).toString('hex'),
      seq: (await this.database.read(selectLastSeq)) + 1,
      issued_at: issuedAt,
      expires_at: issuedAt + lifetimeMs,
      config,
    };
    return { ...bundle, kid: this.keys.kid, signature: await this.keys.sign(signedText(bundle)) };
  }

  /** @returns the stored bundle, or the one that an earlier identical call stored; undefined if the seq was taken */
  private async store(
    tx: Transaction,
    row: ConfigEntity,
    { by, action, from, call }: Issue,
  ): Promise<ConfigEntity | undefined> {
    const before = call && (await this.idempotency.find<string>(tx, call));
    if (before !== undefined) return findBundle(tx, before);
    if (!(await insertConfig(tx, row))) return undefined;
    await this.audit.record(tx, by, {
      action,
      subject: `config/${row.revision}`,
      after: { seq: row.seq, expires_at: toTimestamp(row.expires_at), from },
    });
    if (call) await this.idempotency.store(tx, call, row.revision);
    tx.afterCommit(() => this.cache(row));
    tx.announce(PUBLISHED, String(row.seq));
    return row;
  }

  /** Loads a bundle that another replica published. */
  private catchUp(seq = Number.POSITIVE_INFINITY): void {
    if (seq <= (this.newest?.seq ?? 0)) return;
    this.loadNewest().catch((error: unknown) => {
      this.logger.warn(
        { err: error },
        'the configuration in force could not be read; it is read again after the next reconnection',
      );
    });
  }

  /** Reads the newest bundle and, in the same statement, the last seq that was used, or skipped by a restore. */
  private async loadNewest(): Promise<(ConfigEntity & { last_seq: number }) | undefined> {
    const row = await this.database.read(findNewestConfig);
    if (row && row.seq > (this.newest?.seq ?? 0)) this.cache(row);
    return row;
  }

  private cache(row: ConfigEntity): void {
    this.newest = {
      seq: row.seq,
      revision: row.revision,
      expiresAt: row.expires_at,
      text: bundleText(row),
    };
  }

  private async viewsOf(statements: Statements, rows: readonly ConfigSummary[]): Promise<ConfigView[]> {
    const rollouts = await this.countRollout(
      statements,
      rows.map((row) => row.revision),
    );
    const inForce = this.currentRevision();
    return rows.map((row) => ({
      revision: row.revision,
      seq: row.seq,
      issued_at: toTimestamp(row.issued_at),
      expires_at: toTimestamp(row.expires_at),
      kid: row.kid,
      in_force: row.revision === inForce,
      rollout: rollouts.get(row.revision) ?? { applied: 0, failed: 0, in_service: 0 },
    }));
  }
}

function lifetimeOf({ expires_in }: RollbackRequest): number {
  return (expires_in ?? DEFAULT_LIFETIME_S) * 1_000;
}

async function findBundle(statements: Statements, revision: string): Promise<ConfigEntity> {
  const row = await findConfig(statements, revision);
  if (!row) throw fail('ERR_NOT_FOUND', { revision: 'was never published' });
  return row;
}
