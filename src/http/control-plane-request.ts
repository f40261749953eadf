import type { ExecutionContext } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import type { Transaction } from '../database/statements';
import type { ApiError } from '../errors';
import type { HangUpSignal } from './hang-up';

/** The caller on an agent's route. */
export interface AgentIdentity {
  readonly id: number;
  /** The SHA-256 of the caller's token. Writes check it again, because the token may be revoked meanwhile. */
  readonly tokenHash: string;
}

/** Operators' roles, each including the ones before it. */
export const ROLES = ['viewer', 'operator', 'admin'] as const;
export type Role = (typeof ROLES)[number];

/** The caller on an operator's route. */
export interface OperatorIdentity {
  /** 0 if no token was used: by the process itself, or its command line. */
  readonly tokenId: number;
  readonly name: string;
  readonly role: Role;
  /** The caller's address. */
  readonly address: string;
}

/** Charges a quota that depends on the outcome of the request. */
export interface Charge {
  /** How long until the quota admits a success, in ms, computed when the request arrived; 0 if it admits one now. */
  readonly waitMs: number;
  /**
   * Charges a success, in its unit of work.
   * @param of a `new` identity also counts against the limit of all registrations
   * @returns a function that refunds the charge, for when the unit is rolled back
   * @throws ERR_RATE_LIMITED the quota is used up
   */
  success(tx: Transaction, of: 'new' | 'known'): (() => void) | Promise<() => void>;
  /** Charges the caller's address for a wrong credential that was looked up. */
  failure(): void;
  /** Checks that a credential may be looked up. @throws ERR_RATE_LIMITED the address has failed too often */
  beforeLookup(): void;
}

/** A request, with what the hooks and guards have found out about it. */
export interface ControlPlaneRequest extends FastifyRequest {
  agent?: AgentIdentity;
  operator?: OperatorIdentity;
  /** The key of the caller for quotas and limits: an agent, an operator's token, or an address. */
  caller?: string;
  /** Set by the onRequest hook, once the caller may use the route. */
  admitted?: true;
  /** Set on routes whose quota is charged by outcome. */
  charge?: Charge;
  /** Set on routes with `@HangUp()`: tells whether the caller has disconnected. */
  hangUp?: HangUpSignal;
  /** The error that was sent as the answer. */
  refusal?: ApiError;
  /** Further fields of its log line: ids of what it changed. */
  logFacts?: Readonly<Record<string, unknown>>;
}

/** Returns the request from the context of a guard or a parameter decorator. */
export function requestOf(context: ExecutionContext): ControlPlaneRequest {
  // Not switchToHttp(): it creates three functions each time, and this runs several times for every request.
  return context.getArgByIndex<ControlPlaneRequest>(0);
}
