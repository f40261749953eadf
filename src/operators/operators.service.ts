import { setTimeout as sleep } from 'node:timers/promises';
import { Inject, Injectable, Logger, type OnModuleInit } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { Clock, toTimestamp } from '../clock';
import { Batcher } from '../database/batcher';
import { Database } from '../database/database';
import { writePrivately } from '../database/private-file';
import { RowCache } from '../database/row-cache';
import type { Statements, Transaction } from '../database/statements';
import { fail } from '../errors';
import type { OperatorIdentity } from '../http/control-plane-request';
import { olderThan, type Page, type PageQuery, pageOf } from '../http/pagination';
import { hashSecret, hashToken, isHashOf, isWellFormed, mintToken, sameHash } from '../http/tokens';
import { adminTokenFile, SETTINGS, type Settings } from '../settings';
import { Lifecycle } from '../telemetry/lifecycle';
import { AuditLog, PROCESS } from './audit-log';
import type { OperatorTokenEntity } from './operator-token.entity';
import type { CreatedOperatorToken, CreateOperatorTokenRequest, OperatorTokenView } from './operators.dto';

/** The name of the first admin's token, which comes from the setting or is made at first start. */
const BOOTSTRAP = 'bootstrap';
const CACHED_TOKENS = 1_000;
const KNOWN_COLUMNS = 'id, name, role, expires_at, last_used_at';

/** So many secrets that a person chose are known in memory once they were verified. */
const MAX_VERIFIED = 100;
/** For how long a token that was right is remembered for an outage, in milliseconds. */
const RECENT_MS = 3_600_000;
/** How long the database may take before what is remembered is used, in milliseconds. */
const RECALL_AFTER_MS = 1_000;
/** A secret is compared with so many that are stored slowly hashed; there is one, or two while the setting changes. */
const MAX_COMPARED = 5;
/** So many wait for a slow hash to be worked out; one is at a time. */
const MAX_VERIFYING = 16;
/** A setting's secret has at least so many characters. */
const MIN_SECRET = 24;
/** How long a replica waits for another one that stores the setting's token, in milliseconds. */
const STORING_MS = 50;

/** A token's last use is recorded when the one on record is older than this, in milliseconds. */
const USE_RECORDED_MS = 60_000;

type Known = Pick<OperatorTokenEntity, 'id' | 'name' | 'role' | 'expires_at' | 'last_used_at'>;

/** A token that the process stored itself. */
type Bootstrap = Pick<OperatorTokenEntity, 'id' | 'revoked_at'>;

/** Whoever may use the database's file may do anything: the command line, where no server runs. */
const COMMAND_LINE: OperatorIdentity = { tokenId: 0, name: 'command line', role: 'admin', address: 'local' };

/** A token that works at an instant, `$1`. */
const WORKS = 'revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1)';

/** Has the form of a token that the program made, whatever its checksum. */
const MISTYPED = /^dcpo_[0-9A-Za-z]{49}$/;

/** Owns operator_tokens: who operates the control plane. */
@Injectable()
export class OperatorsService implements OnModuleInit {
  private readonly logger = new Logger('Operators');
  /** By hash. */
  private readonly tokens: RowCache<Known>;
  private readonly uses: Batcher<number, undefined>;
  /** The hash of the command line's token; empty if it asked for none. */
  private commandLineHash = '';
  /** The id of the setting's token, once it is stored. */
  private settingId: number | undefined;
  /** Of a secret that a person chose, by its SHA-256, which is kept in memory only: the slow hash that is stored. */
  private readonly verified = new LRUCache<string, string>({ max: MAX_VERIFIED });
  /** Tokens that were right lately, by what is stored of them, for what is shown during an outage. */
  private readonly recent = new LRUCache<string, Known>({ max: MAX_VERIFIED, ttl: RECENT_MS });
  private verifying = 0;
  private lastVerified: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly audit: AuditLog,
    @Inject(SETTINGS) private readonly settings: Settings,
    private readonly lifecycle: Lifecycle,
  ) {
    this.tokens = new RowCache(database, 'operator-tokens', CACHED_TOKENS);
    database.onAnnouncement('operator-tokens', (key) => this.recent.delete(key));
    this.uses = new Batcher(database, (tx, ids) => this.storeUses(tx, ids));
  }

  /**
   * Sees to it that there is an admin: the one of the setting, else one whose token is left in a file. A token that an
   * earlier setting gave goes on working until an operator revokes it: of replicas that change the setting one after
   * the other, none may shut out those who still hold the old one.
   */
  async onModuleInit(): Promise<void> {
    if (!this.lifecycle.serves) return;
    const { adminToken } = this.settings;
    if (adminToken !== undefined) await this.admitSetting(adminToken);
    // Of replicas that start at once one makes it.
    await this.database.exclusively('first-admin', () => this.makeFirstAdmin());
    // A look-up may be refused at an address from which others are guessing.
    await this.tokens.fill(async (statements) => {
      const rows = await statements.rows<Known & { token_hash: string }>(
        `SELECT token_hash, ${KNOWN_COLUMNS} FROM operator_tokens WHERE ${WORKS} ORDER BY id DESC LIMIT $2`,
        this.clock.now(),
        CACHED_TOKENS,
      );
      return new Map(rows.map(({ token_hash, ...known }) => [token_hash, known]));
    });
  }

  private async admitSetting(secret: string): Promise<void> {
    const { id, revoked_at } = await this.storeSetting(secret);
    this.settingId = id;
    if (revoked_at !== null)
      this.logger.error(
        { id },
        'the token of CONTROL_PLANE_ADMIN_TOKEN was revoked and stays void; set another',
      );
    const others = await this.database.read((statements) =>
      statements.rows<{ id: number }>(
        `SELECT id FROM operator_tokens WHERE ${WORKS} AND origin = 'setting' AND id <> $2 ORDER BY id`,
        this.clock.now(),
        id,
      ),
    );
    if (others.length > 0)
      this.logger.warn(
        { ids: others.map((other) => other.id) },
        'tokens of earlier CONTROL_PLANE_ADMIN_TOKEN still work; revoke them by control-plane token revoke ID',
      );
  }

  private async makeFirstAdmin(): Promise<void> {
    const known = await this.database.read((statements) =>
      statements.first(
        `SELECT id FROM operator_tokens WHERE ${WORKS} AND role = 'admin' LIMIT 1`,
        this.clock.now(),
      ),
    );
    if (known) return;
    const token = mintToken('dcpo_');
    const path = adminTokenFile(this.settings.database);
    // The file first: a token in the database that nobody knows would never be replaced.
    writePrivately(path, `${token}\n`);
    await this.storeBootstrap(hashToken(token), 'file');
    this.logger.log({ path }, "the first admin's token is in this file");
  }

  /**
   * Stores the setting's token. One that a person chose is stored as a slow hash, which is another each time it is made: of
   * replicas that start at once one makes it, and the others find it.
   */
  private async storeSetting(secret: string): Promise<Bootstrap> {
    if (isWellFormed('dcpo_', secret)) return this.storeBootstrap(hashToken(secret), 'setting');
    let stored = await this.findChosen(secret);
    while (stored === undefined) {
      const isOurTurn = await this.database.exclusively('admin-setting', async () => {
        stored = await this.findChosen(secret);
        if (stored !== undefined) return;
        const made = await hashSecret(secret);
        await this.storeBootstrap(made, 'setting');
        stored = made;
      });
      if (!isOurTurn) await sleep(STORING_MS);
    }
    this.verified.set(hashToken(secret), stored);
    return this.storeBootstrap(stored, 'setting');
  }

  /** The slow hash that is stored of a secret, whether it works or not. */
  private async findChosen(secret: string): Promise<string | undefined> {
    for (const stored of await this.database.read((statements) => chosen(statements)))
      if (await isHashOf(stored, secret)) return stored;
    return undefined;
  }

  /**
   * Tells whose token this is. The look-up is by hash, so its time says nothing about the token.
   * @param address where the call comes from, for the audit log
   * @param beforeLookup called with the credential, and whether a slow hash may be needed, before the database is read for it;
   *   may throw to prevent that
   * @param duringOutage whether a token that was right within the hour is let in while the database does not answer
   * @throws ERR_UNAUTHORIZED unknown or revoked
   * @throws ERR_TOKEN_EXPIRED it was right once
   * @throws ERR_UNAVAILABLE too many wait for a slow hash
   */
  async authenticate(
    token: string,
    address: string,
    beforeLookup: (credential: string, isCostly: boolean) => void,
    duringOutage?: 'during outage',
  ): Promise<OperatorIdentity> {
    const hash = hashToken(token);
    if (sameHash(this.commandLineHash, hash)) return COMMAND_LINE;
    const key = this.verified.get(hash) ?? hash;
    let known = this.tokens.get(key);
    if (!known) {
      // A typo shows by its checksum. What a person chose can be any string, also one that looks like ours.
      const isMinted = isWellFormed('dcpo_', token);
      if (key === hash && !isMinted && (token.length < MIN_SECRET || MISTYPED.test(token)))
        throw fail('ERR_UNAUTHORIZED');
      // What was right a moment ago is no guess: the row is only too old to rely on.
      if (!this.tokens.peek(key) && key === hash) beforeLookup(`operator:${hash}`, !isMinted);
      const stored = key === hash && !isMinted ? await this.verify(token, hash) : key;
      if (stored !== undefined)
        known = await (duringOutage ? this.lookUpOrRecall(stored) : this.lookUp(stored));
      if (!known) {
        // It was revoked: from now on it is a guess like any other.
        this.verified.delete(hash);
        this.recent.delete(key);
        throw fail('ERR_UNAUTHORIZED');
      }
    }
    if (duringOutage) this.recent.set(key, known);
    const now = this.clock.now();
    if (known.expires_at !== null && known.expires_at <= now)
      throw fail('ERR_TOKEN_EXPIRED', undefined, { message: 'The token has expired.' });
    if ((known.last_used_at ?? 0) <= now - USE_RECORDED_MS) this.recordUse(known, now);
    return { tokenId: known.id, name: known.name, role: known.role, address };
  }

  /** The token as it is; or as it was within the hour, if the database says nothing of it for a second. */
  private async lookUpOrRecall(stored: string): Promise<Known | undefined> {
    const recent = this.recent.get(stored);
    const looking = this.lookUp(stored);
    if (!recent) return looking;
    const ended = new AbortController();
    try {
      return await Promise.race([
        looking,
        sleep(RECALL_AFTER_MS, recent, { ref: false, signal: ended.signal }),
      ]);
    } catch {
      return recent;
    } finally {
      looking.catch(() => undefined);
      ended.abort();
    }
  }

  private lookUp(stored: string): Promise<Known | undefined> {
    return this.tokens.load(stored, (statements) =>
      statements.first<Known>(
        `SELECT ${KNOWN_COLUMNS} FROM operator_tokens
         WHERE token_hash = $1 AND revoked_at IS NULL`,
        stored,
      ),
    );
  }

  /**
   * Finds the slow hash of a secret among those that work, and remembers it. Those that are known to be of another secret
   * cost nothing: with the setting present, and after the first call without it, no guess makes the process work.
   * @throws ERR_UNAVAILABLE too many wait already
   */
  private async verify(secret: string, hash: string): Promise<string | undefined> {
    const rows = await this.database.read((statements) => chosen(statements, { works: true }));
    const others = new Set(this.verified.values());
    const candidates = rows.filter((stored) => !others.has(stored));
    if (candidates.length === 0) return undefined;
    if (this.verifying >= MAX_VERIFYING)
      throw fail('ERR_UNAVAILABLE', { reason: 'verifying' }, { retryAfterMs: 1_000 });
    this.verifying++;
    // One after the other: each takes tens of megabytes and a thread that files are read by, too.
    const turn = this.lastVerified.then(async () => {
      for (const stored of candidates) if (await isHashOf(stored, secret)) return stored;
      return undefined;
    });
    this.lastVerified = turn.catch(() => undefined);
    try {
      const stored = await turn;
      if (stored !== undefined) this.verified.set(hash, stored);
      return stored;
    } finally {
      this.verifying--;
    }
  }

  /** Makes a token for the command line in this process. It is stored nowhere and ends with the process. */
  admitCommandLine(): string {
    const token = mintToken('dcpo_');
    this.commandLineHash = hashToken(token);
    return token;
  }

  /** Makes a token. Only its hash is kept, so this answer is the one that shows it. */
  async create(
    by: OperatorIdentity,
    { name, role, expires_in: expiresIn }: CreateOperatorTokenRequest,
  ): Promise<CreatedOperatorToken> {
    const token = mintToken('dcpo_');
    const view = await this.database.write(async (tx) => {
      const { now } = tx;
      const [row] = await tx.rows<OperatorTokenEntity>(
        `INSERT INTO operator_tokens (name, role, origin, token_hash, created_at, expires_at)
         VALUES ($1, $2, 'issued', $3, $4, $5) RETURNING *`,
        name,
        role,
        hashToken(token),
        now,
        expiresIn == null ? null : now + expiresIn * 1_000,
      );
      const view = viewOf(row as OperatorTokenEntity);
      await this.audit.record(tx, by, {
        action: 'operator-token.create',
        subject: `operator-token/${view.id}`,
        after: { name, role, expires_at: view.expires_at },
      });
      return view;
    });
    // If it fails, the token's first call looks it up.
    await this.lookUp(hashToken(token)).catch(() => undefined);
    return { ...view, token };
  }

  /** Lists tokens, newest first; revoked ones too. */
  list(query: PageQuery): Promise<Page<OperatorTokenView>> {
    return this.database.read(async (statements) => {
      const rows = await statements.rows<OperatorTokenEntity>(
        'SELECT * FROM operator_tokens WHERE id < $1 ORDER BY id DESC LIMIT $2',
        olderThan(query),
        query.limit + 1,
      );
      return pageOf(rows, query.limit, (row) => row.id, viewOf);
    });
  }

  /**
   * Revokes a token, effective when it is answered. The same again changes nothing.
   * @throws ERR_NOT_FOUND there is no such token
   * @throws ERR_CONFLICT the setting of this server holds it, or it is the last admin's that works
   */
  revoke(by: OperatorIdentity, id: number): Promise<void> {
    return this.database.write(async (tx) => {
      const token = await tx.first<OperatorTokenEntity>('SELECT * FROM operator_tokens WHERE id = $1', id);
      if (!token) throw fail('ERR_NOT_FOUND', { operator_token_id: id });
      if (token.revoked_at !== null) return;
      if (id === this.settingId) {
        throw fail(
          'ERR_CONFLICT',
          { origin: 'setting' },
          {
            message:
              'This token is the CONTROL_PLANE_ADMIN_TOKEN of this server; set another, start again, then revoke it.',
          },
        );
      }
      await this.requireAnotherAdmin(tx, id);
      // Recorded first: a token may revoke itself.
      await this.recordRevocation(tx, by, token);
      await tx.run('UPDATE operator_tokens SET revoked_at = $2 WHERE id = $1', id, tx.now);
    });
  }

  /** Writes down that a token is out, and has every replica forget it. */
  private async recordRevocation(
    tx: Transaction,
    by: OperatorIdentity,
    { id, name, role, token_hash: hash }: OperatorTokenEntity,
  ): Promise<void> {
    await this.audit.record(tx, by, {
      action: 'operator-token.withdraw',
      subject: `operator-token/${id}`,
      before: { name, role },
    });
    this.tokens.announceChange(tx, hash);
  }

  /** Nobody waits for it, and a use that could not be written shows at the next one. */
  private recordUse(known: Known, now: number): void {
    const before = known.last_used_at;
    known.last_used_at = now;
    this.uses.run(known.id).catch((error: unknown) => {
      known.last_used_at = before;
      this.logger.warn({ err: error }, "a token's use could not be recorded");
    });
  }

  private async storeUses(tx: Transaction, ids: readonly number[]): Promise<undefined[]> {
    await tx.run(
      `UPDATE operator_tokens SET last_used_at = $2 WHERE ${tx.dialect.isAmong('id', '$1')}`,
      JSON.stringify(ids),
      tx.now,
    );
    return ids.map(() => undefined);
  }

  /** @throws ERR_CONFLICT nobody but this token could make another */
  private async requireAnotherAdmin(tx: Transaction, id: number): Promise<void> {
    // Of two that revoke each other's token one must see what the other did.
    const admins = await tx.rows<{ id: number }>(`SELECT id FROM operator_tokens WHERE role = 'admin'`);
    await tx.lockRows(
      'operator_tokens',
      admins.map((admin) => admin.id),
    );
    const other = await tx.first(
      `SELECT id FROM operator_tokens WHERE ${WORKS} AND role = 'admin' AND id <> $2 LIMIT 1`,
      tx.now,
      id,
    );
    if (other) return;
    throw fail('ERR_CONFLICT', undefined, {
      message: "This is the last admin's token; make another first.",
    });
  }

  /** Stores the token of the process's own making or setting; one that was revoked stays so. */
  private storeBootstrap(hash: string, origin: 'setting' | 'file'): Promise<Bootstrap> {
    return this.database.write(async (tx) => {
      const known = await tx.first<OperatorTokenEntity>(
        'SELECT * FROM operator_tokens WHERE token_hash = $1',
        hash,
      );
      if (known && known.revoked_at !== null) return known;
      if (known?.origin === origin && known.role === 'admin') return known;
      // Who sets a token that is stored already means that one, whatever it could do.
      const [row] = await tx.rows<Bootstrap>(
        `INSERT INTO operator_tokens (name, role, origin, token_hash, created_at) VALUES ($1, 'admin', $2, $3, $4)
         ON CONFLICT (token_hash) DO UPDATE SET name = excluded.name, role = excluded.role, origin = excluded.origin,
           expires_at = NULL
         RETURNING id, revoked_at`,
        BOOTSTRAP,
        origin,
        hash,
        tx.now,
      );
      const stored = row as Bootstrap;
      await this.audit.record(tx, PROCESS, {
        action: 'operator-token.create',
        subject: `operator-token/${stored.id}`,
        after: { name: BOOTSTRAP, role: 'admin', origin },
      });
      this.tokens.announceChange(tx, hash);
      return stored;
    });
  }
}

/** What is stored slowly hashed, newest first: all of it, or the newest few that work. */
async function chosen(statements: Statements, { works } = { works: false }): Promise<string[]> {
  const rows = await statements.rows<Pick<OperatorTokenEntity, 'token_hash'>>(
    `SELECT token_hash FROM operator_tokens WHERE token_hash LIKE 'scrypt$%'
     ${works ? 'AND revoked_at IS NULL' : ''} ORDER BY id DESC ${works ? `LIMIT ${MAX_COMPARED}` : ''}`,
  );
  return rows.map(({ token_hash: stored }) => stored);
}

function viewOf(row: OperatorTokenEntity): OperatorTokenView {
  return {
    id: row.id,
    name: row.name,
    role: row.role,
    origin: row.origin,
    created_at: toTimestamp(row.created_at),
    expires_at: toTimestamp(row.expires_at),
    revoked_at: toTimestamp(row.revoked_at),
    last_used_at: toTimestamp(row.last_used_at),
  };
}
