import { Field } from '../http/item-fields';

/** The outcomes of a check that an agent can report. */
export const OUTCOMES = ['success', 'timeout', 'error'] as const;
export type Outcome = (typeof OUTCOMES)[number];

/**
 * What went wrong with a check: the target refused it or asked for a pause, did not answer in time, or could not be
 * reached; or it was the agent's own trouble, or its owner's policy.
 */
export const FAILURES = ['refused', 'throttled', 'timeout', 'unreachable', 'local', 'policy'] as const;
export type Failure = (typeof FAILURES)[number];

/** One observed value of a check. */
export class Observation {
  // The name can come from observed data, so all characters are accepted.
  @Field({ type: 'string', minLength: 1, maxLength: 255, example: 'rtt_ms' })
  name!: string;

  /** Any JSON. */
  @Field({ type: 'any', asSent: true, example: 12.5 })
  value!: unknown;

  @Field({ type: 'string', optional: true, maxLength: 64, example: 'ms' })
  unit?: string | null;
}
