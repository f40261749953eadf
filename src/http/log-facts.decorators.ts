import { SetMetadata } from '@nestjs/common';

export const LOG_FACTS = Symbol('log-facts');

/** Tells of a success what its line in the log says besides: ids only, never what clients sent. */
export type LogFacts<Answer = never> = (answer: Answer) => Readonly<Record<string, unknown>>;

/** Has the line in the log of a success say more than the request does, such as the ids of what it made. */
export const LogsFacts = <Answer extends object>(facts: LogFacts<Answer>) => SetMetadata(LOG_FACTS, facts);
