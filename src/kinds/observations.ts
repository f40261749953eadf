import { Field } from '../http/item-fields';

/** The outcomes of a check that an agent can report. */
export const OUTCOMES = ['success', 'timeout', 'error'] as const;
export type Outcome = (typeof OUTCOMES)[number];

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
