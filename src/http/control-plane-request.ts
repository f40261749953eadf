import type { ExecutionContext } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import type { Transaction } from '../database/statements';
import type { ApiError } from '../errors';

/** The caller on an agent's route. */
export interface AgentIdentity {
  readonly id: number;
  /** The SHA-256 of the token that it showed: what is written for it is written only while that token still works. */
  readonly tokenHash: string;
}

/** Operators' roles, each including the ones before it. */
export const ROLES = ['viewer', 'operator', 'admin'] as const;
export type Role = (typeof ROLES)[number];

/** The caller on an operator's route. */
export interface OperatorIdentity {
  /** 0 where no token was used: the process itself, or its command line. */
  readonly tokenId: number;
  readonly name: string;
  readonly role: Role;
  /** Where the call comes from. */
  readonly address: string;
}

/** How the service charges a quota that is counted by the outcome of the request. */
export interface Charge {
  /** How long until the quota lets a success in, in milliseconds, as it was when the request came; 0 if it does. */
  readonly waitMs: number;
  /**
   * Takes the charge of a success, in the unit of work that it comes from.
   * @param of a `new` identity also counts against the ceiling of all registrations
   * @returns what gives it back, for when the unit is undone
   * @throws ERR_RATE_LIMITED
   */
  success(tx: Transaction, of: 'new' | 'known'): (() => void) | Promise<() => void>;
  /** Charges the caller's address for a credential that was looked up and is wrong. */
  failure(): void;
  /** Called before a credential is looked up. @throws ERR_RATE_LIMITED the address has failed too often */
  beforeLookup(): void;
}

/** A request once it is admitted: its caller, and how to charge what is charged by its outcome. */
export interface ControlPlaneRequest extends FastifyRequest {
  agent?: AgentIdentity;
  operator?: OperatorIdentity;
  /** What is counted by caller is counted under this: an agent, an operator's token, or an address. */
  caller?: string;
  /** Set by the onRequest hook, once the caller may use the route. */
  admitted?: true;
  /** Set on routes whose quota is charged by outcome. */
  charge?: Charge;
  /** Set on routes that ask for it: aborts when the caller hangs up. */
  hangUp?: AbortSignal;
  /** The error that it was answered with. */
  refusal?: ApiError;
  /** What its line in the log says besides: ids of what it changed. */
  logFacts?: Readonly<Record<string, unknown>>;
}

/** The request that a guard or a decorator of a parameter is called for. */
export function requestOf(context: ExecutionContext): ControlPlaneRequest {
  // Not switchToHttp(): it makes three functions each time, and this runs several times for every request.
  return context.getArgByIndex<ControlPlaneRequest>(0);
}
