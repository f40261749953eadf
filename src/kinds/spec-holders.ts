import type { Type } from '@nestjs/common';

/** A class of the API with a `spec` field: the OpenAPI document shows there the specs of all kinds. */
export interface SpecHolder {
  readonly type: Type<{ spec: object }>;
  /** Whether the class is an input, whose `kind` the caller chooses. */
  readonly isInput: boolean;
}

const holders: SpecHolder[] = [];

/** Marks a class of the API that has a `spec` field. */
export const HoldsSpec =
  ({ isInput = false }: { isInput?: boolean } = {}) =>
  (type: Type<{ spec: object }>): void => {
    holders.push({ type, isInput });
  };

/** Returns every marked class. */
export const specHolders = (): readonly SpecHolder[] => holders;
