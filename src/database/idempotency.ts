import { hash } from 'node:crypto';
import { Injectable } from '@nestjs/common';
import canonicalize from 'canonicalize';
import { fail } from '../errors';
import type { Statements, Transaction } from './statements';

/** A call under an `Idempotency-Key`: the owner of the key, the key, and the hash of the request. */
export interface IdempotentCall {
  readonly scope: string;
  readonly key: string;
  readonly requestHash: string;
}

/**
 * Owns idempotency_keys: stores the answer under a key in the transaction that has the effect, so that a repeated call
 * has no second effect.
 */
@Injectable()
export class Idempotency {
  private readonly running = new Set<string>();

  /**
   * Identifies a call.
   * @param scope the owner of the key: keys of two callers never conflict
   * @param request a repeat must be the same JSON, in any order of its fields
   * @throws ERR_VALIDATION the key is not 1 to 255 visible ASCII characters
   */
  call(scope: string, key: string, request: unknown): IdempotentCall {
    if (!/^[\x21-\x7e]{1,255}$/.test(key)) {
      throw fail('ERR_VALIDATION', { 'idempotency-key': 'must be 1 to 255 visible ASCII characters' });
    }
    return { scope, key, requestHash: hash('sha256', canonicalize(request) as string, 'hex') };
  }

  /**
   * Runs a call that may take long, unless a call under the same key is running.
   * @throws ERR_CONFLICT retryable: the first call still runs
   */
  async alone<T>(call: IdempotentCall, work: () => Promise<T>): Promise<T> {
    const name = `${call.scope}\0${call.key}`;
    if (this.running.has(name)) {
      throw fail(
        'ERR_CONFLICT',
        { 'idempotency-key': 'is in use by a call that still runs' },
        { retryable: true, retryAfterMs: 1_000 },
      );
    }
    this.running.add(name);
    try {
      return await work();
    } finally {
      this.running.delete(name);
    }
  }

  /**
   * Finds the answer that was stored under the key.
   * @param lock locks the row until the unit ends, so that the unit can replace it
   * @returns undefined if there is none
   * @throws ERR_CONFLICT the key was used for another request
   */
  async find<Response>(
    statements: Statements,
    call: IdempotentCall,
    lock = false,
  ): Promise<Response | undefined> {
    const row = await statements.first<{ request_hash: string; response: string }>(
      `SELECT request_hash, response FROM idempotency_keys WHERE scope = $1 AND idempotency_key = $2
       ${lock ? statements.dialect.forUpdate() : ''}`,
      call.scope,
      call.key,
    );
    if (!row) return undefined;
    if (row.request_hash !== call.requestHash) {
      throw fail('ERR_CONFLICT', { 'idempotency-key': 'was used for another request' });
    }
    return JSON.parse(row.response) as Response;
  }

  /** Stores the answer under the key, in the transaction that has the effect. */
  async store(tx: Transaction, call: IdempotentCall, response: unknown): Promise<void> {
    await tx.run(
      `INSERT INTO idempotency_keys (scope, idempotency_key, request_hash, response, created_at)
       VALUES ($1, $2, $3, $4, $5)`,
      call.scope,
      call.key,
      call.requestHash,
      JSON.stringify(response),
      tx.now,
    );
  }

  /** Replaces the answer under the key, in the transaction that has the effect. */
  async replace(tx: Transaction, call: IdempotentCall, response: unknown): Promise<void> {
    await tx.run(
      'UPDATE idempotency_keys SET response = $3 WHERE scope = $1 AND idempotency_key = $2',
      call.scope,
      call.key,
      JSON.stringify(response),
    );
  }

  /** Deletes up to `limit` of the keys stored before an instant. @returns their number */
  forget(tx: Transaction, beforeMs: number, limit: number): Promise<number> {
    return tx.run(
      `DELETE FROM idempotency_keys WHERE (scope, idempotency_key) IN (
         SELECT scope, idempotency_key FROM idempotency_keys WHERE created_at < $1 ORDER BY created_at LIMIT $2)`,
      beforeMs,
      limit,
    );
  }
}
