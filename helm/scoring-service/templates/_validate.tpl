{{/*
What a schema cannot say. Each message names the value and what to write instead. Takes a dict of root and model.
*/}}
{{- define "scoring-service.validate" -}}
{{- $values := .root.Values -}}
{{- $model := .model -}}
{{- $at := printf "models[%s]" $model.name -}}

{{- $asks := or $values.auth.enabled $values.tls.clientCa.enabled -}}
{{- if not (or $values.allowInsecure (and $values.tls.enabled $asks)) -}}
{{- fail "Whoever reaches the pods could use them: set tls.enabled and auth.enabled (or tls.clientCa.enabled), or, where a mesh or networkPolicy takes care of it, allowInsecure=true" -}}
{{- end -}}
{{- if and $values.tls.clientCa.enabled (not $values.tls.enabled) -}}
{{- fail "tls.clientCa.enabled needs tls.enabled" -}}
{{- end -}}
{{- if and $values.tls.enabled (not $values.tls.existingSecret) (not (and $values.tls.certificate $values.tls.key)) -}}
{{- fail "tls.enabled needs tls.existingSecret, or tls.certificate and tls.key" -}}
{{- end -}}
{{- if and $values.tls.clientCa.enabled (not $values.tls.existingSecret) (not (or $values.tls.clientCa.existingSecret $values.tls.clientCa.certificate)) -}}
{{- fail "tls.clientCa.enabled needs tls.clientCa.existingSecret or tls.clientCa.certificate, or a tls.existingSecret that holds ca.crt" -}}
{{- end -}}
{{- if and $values.tls.existingSecret $values.tls.clientCa.certificate -}}
{{- fail "tls.clientCa.certificate goes into the Secret that the chart makes, and tls.existingSecret names another: use tls.clientCa.existingSecret" -}}
{{- end -}}
{{- if and $values.tls.serverCa $values.tls.existingSecret -}}
{{- fail "tls.serverCa goes into the Secret that the chart makes, and tls.existingSecret names another: use test.serverCaSecret, unless that Secret holds the authority as test.serverCaKey" -}}
{{- end -}}
{{- if and $values.tls.enabled (not $values.tls.existingSecret) (not $values.test.serverCaSecret) (not (has $values.test.serverCaKey (list "ca.crt" "tls.crt"))) -}}
{{- fail (printf "test.serverCaKey: the Secret that the chart makes has no key %q: name the Secret that has it in test.serverCaSecret, or give the authority as tls.serverCa" $values.test.serverCaKey) -}}
{{- end -}}
{{- if and $values.auth.enabled (not (or $values.auth.existingSecret $values.auth.tokens)) -}}
{{- fail "auth.enabled needs auth.existingSecret or auth.tokens" -}}
{{- end -}}

{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "scoring-service.modelname" .)) -}}
{{- fail (printf "%s: %s can be no Service's name, which begins with a letter and has small letters, digits and hyphens alone; set fullnameOverride" $at (include "scoring-service.modelname" .)) -}}
{{- end -}}
{{- if gt (len (include "scoring-service.modelname" .)) 54 -}}
{{- fail (printf "%s: the name %s is longer than 54 characters, too long for a headless Service's; set fullnameOverride" $at (include "scoring-service.modelname" .)) -}}
{{- end -}}

{{- $taken := concat (include "scoring-service.environment" . | fromYamlArray) (include "scoring-service.hub" . | fromYamlArray) -}}
{{- $names := ternary (list "HF_HUB_OFFLINE") list $model.download.enabled -}}
{{- range $taken -}}{{- $names = append $names .name -}}{{- end -}}
{{- range $model.env -}}
{{- if has .name $names -}}
{{- fail (printf "%s: env: the chart sets %s itself (folders of the image, hub.endpoint, hub.existingSecret, download)" $at .name) -}}
{{- end -}}
{{- if hasPrefix "SCORING_" .name -}}
{{- fail (printf "%s: env: %s is for the server's settings, which settings.%s or another value gives" $at .name (trimPrefix "SCORING_" .name | lower)) -}}
{{- end -}}
{{- end -}}
{{- $volumes := list -}}
{{- range include "scoring-service.volumes" (dict "root" .root "model" (omit $model "extraVolumes")) | fromYamlArray -}}{{- $volumes = append $volumes .name -}}{{- end -}}
{{- range $model.extraVolumes -}}
{{- if has .name $volumes -}}
{{- fail (printf "%s: extraVolumes: the pod has a volume %q already; give yours another name" $at .name) -}}
{{- end -}}
{{- end -}}

{{- $paths := list -}}
{{- range include "scoring-service.servermounts" . | fromYamlArray -}}{{- $paths = append $paths .mountPath -}}{{- end -}}
{{- range $model.extraVolumeMounts -}}
{{- $path := clean .mountPath -}}
{{- if has $path $paths -}}
{{- fail (printf "%s: extraVolumeMounts: something is mounted at %s already; mount yours below it, such as at %s/x" $at $path $path) -}}
{{- end -}}
{{- $paths = append $paths $path -}}
{{- end -}}

{{- $least := add (int $model.preStopSeconds) (int $model.drainSeconds) 10 -}}
{{- if and $model.terminationGracePeriodSeconds (lt (int $model.terminationGracePeriodSeconds) (int $least)) -}}
{{- fail (printf "%s: terminationGracePeriodSeconds %d would kill running calls: preStopSeconds %d + drainSeconds %d + 10 = %d is the least; leave it unset to have it computed" $at (int $model.terminationGracePeriodSeconds) (int $model.preStopSeconds) (int $model.drainSeconds) (int $least)) -}}
{{- end -}}

{{- $cache := $model.cache -}}
{{- $many := or (gt (int $model.replicas) 1) $model.autoscaling.enabled -}}
{{- if and $cache.enabled (not $cache.existingClaim) $many (not (has "ReadWriteMany" $cache.accessModes)) -}}
{{- fail (printf "%s: several pods cannot share a %s claim unless they happen to share a node: use cache.accessModes=[ReadWriteMany], an existingClaim, or cache.enabled=false" $at (join ", " $cache.accessModes)) -}}
{{- end -}}
{{- if and $cache.enabled (not $cache.existingClaim) (not (without $cache.accessModes "ReadOnlyMany")) -}}
{{- fail (printf "%s: a claim that the chart makes is empty, and nobody could write weights to one that is ReadOnlyMany alone: use another mode of cache.accessModes, or an existingClaim with the weights" $at) -}}
{{- end -}}
{{- if and $model.download.enabled (or (not $model.model) (hasPrefix "/" $model.model) (hasPrefix "." $model.model)) -}}
{{- fail (printf "%s: download.enabled needs a Hub id as model, not %q" $at $model.model) -}}
{{- end -}}
{{- if and $model.download.enabled $model.settings.weights_hub -}}
{{- fail (printf "%s: settings.weights_hub %s: with download.enabled the server is offline and has no token, so it could never read them: set download.enabled=false, and the server fetches its model itself; or use settings.weights_root" $at (join ", " $model.settings.weights_hub)) -}}
{{- end -}}
{{- if and $model.autoscaling.enabled (lt (int $model.autoscaling.maxReplicas) (int $model.autoscaling.minReplicas)) -}}
{{- fail (printf "%s: autoscaling.maxReplicas is below autoscaling.minReplicas" $at) -}}
{{- end -}}
{{- if and $model.autoscaling.enabled (not $values.metrics.serviceMonitor.enabled) (not $model.autoscaling.query) -}}
{{- fail (printf "%s: autoscaling asks Prometheus: set metrics.serviceMonitor.enabled, or autoscaling.query if it is fed otherwise" $at) -}}
{{- end -}}
{{- /* The number is the server's own default. */ -}}
{{- $room := int64 ($model.settings.max_queue_tokens | default 4194304) -}}
{{- if and $model.autoscaling.enabled (not $model.autoscaling.query) (ge (int64 $model.autoscaling.tokensPerReplica) $room) -}}
{{- fail (printf "%s: autoscaling.tokensPerReplica %d is never reached: beyond settings.max_queue_tokens, %d, calls are refused; it must be well below" $at (int64 $model.autoscaling.tokensPerReplica) $room) -}}
{{- end -}}
{{- $device := $model.settings.device | default "" -}}
{{- if and (eq (int $model.gpus) 0) (hasPrefix "cuda" $device) -}}
{{- fail (printf "%s: settings.device %s, on pods without GPUs: set gpus" $at $device) -}}
{{- end -}}
{{- if and (gt (int $model.gpus) 0) $model.workers (gt (int $model.workers) (int $model.gpus)) -}}
{{- fail (printf "%s: %d workers would share %d GPUs, each with the whole model: workers must not exceed gpus" $at (int $model.workers) (int $model.gpus)) -}}
{{- end -}}
{{- if and (gt (int $model.gpus) 1) (contains "/mig-" $model.gpuResource) -}}
{{- fail (printf "%s: %d of %s: a process sees one slice of a GPU, whatever the pod has: gpus=1, and as many replicas" $at (int $model.gpus) $model.gpuResource) -}}
{{- end -}}
{{- if $model.liveWeights.enabled -}}
{{- $names := $model.settings.admin_names | default list -}}
{{- if $values.auth.enabled -}}
{{- $may := ternary true false (not (empty $values.auth.existingSecret)) -}}
{{- range $values.auth.tokens -}}{{- if has "admin" .scopes -}}{{- $may = true -}}{{- end -}}{{- end -}}
{{- if not $may -}}
{{- fail (printf "%s: liveWeights.enabled, but nobody may push: no entry of auth.tokens has the scope admin" $at) -}}
{{- end -}}
{{- else if $values.tls.clientCa.enabled -}}
{{- if not $names -}}
{{- fail (printf "%s: liveWeights.enabled, but nobody may push: settings.admin_names lists the names of client certificates that may" $at) -}}
{{- end -}}
{{- else if not $model.settings.allow_admin -}}
{{- fail (printf "%s: liveWeights.enabled, but nobody may push: use auth.tokens with the scope admin, or settings.admin_names with tls.clientCa; or settings.allow_admin=true lets everybody who reaches the pods" $at) -}}
{{- end -}}
{{- end -}}
{{- include "scoring-service.validaterequests" (dict "at" (printf "%s: resources" $at) "resources" ($model.resources | default dict)) -}}
{{- if $model.download.enabled -}}
{{- include "scoring-service.validaterequests" (dict "at" (printf "%s: download.resources" $at) "resources" ($model.download.resources | default dict)) -}}
{{- end -}}
{{- if gt (int $model.gpus) 0 -}}
{{- $memory := include "scoring-service.mebibytes" (dig "limits" "memory" "" ($model.resources | default dict)) | int -}}
{{- if and (ge $memory 0) (lt $memory 16384) -}}
{{- fail (printf "%s: with GPUs, weights pass through the host's memory, and resources.limits.memory %s kills the pod while they do: set it to the weights' size and some 16Gi (`scoring-service plan` prints it)" $at (dig "limits" "memory" "" ($model.resources | default dict) | toString)) -}}
{{- end -}}
{{- end -}}
{{- range $key := list "cpu" "memory" -}}
{{- if not (dig "requests" $key "" ($model.resources | default dict)) -}}
{{- if not (dig "limits" $key "" ($model.resources | default dict)) -}}
{{- fail (printf "%s: resources.requests.%s is needed: without it the scheduler puts the pod anywhere" $at $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Requests above limits, which Kubernetes refuses. Takes a dict of `at`, the place of the values, and `resources`. */}}
{{- define "scoring-service.validaterequests" -}}
{{- $limits := .resources.limits | default dict -}}
{{- range $key, $kind := dict "cpu" "thousandths" "memory" "mebibytes" "ephemeral-storage" "mebibytes" -}}
{{- $request := dig $key "" ($.resources.requests | default dict) -}}
{{- $limit := dig $key "" $limits -}}
{{- if and $request $limit -}}
{{- $most := include (printf "scoring-service.%s" $kind) $limit | int64 -}}
{{- if and (ge $most 0) (gt (include (printf "scoring-service.%s" $kind) $request | int64) $most) -}}
{{- fail (printf "%s.requests.%s %s is more than limits.%s %s, which Kubernetes refuses; whichever is not set is that of `defaults`" $.at $key (toString $request) $key (toString $limit)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Milliseconds of a duration of Prometheus, as the schema lets it be written. */}}
{{- define "scoring-service.milliseconds" -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- mul (trimSuffix $unit . | int64) (get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit) -}}
{{- end -}}

{{/* Values of metrics that contradict one another. Takes the root. */}}
{{- define "scoring-service.validatemetrics" -}}
{{- with .Values.metrics.serviceMonitor -}}
{{- if gt (include "scoring-service.milliseconds" .scrapeTimeout | int64) (include "scoring-service.milliseconds" .interval | int64) -}}
{{- fail (printf "metrics.serviceMonitor: scrapeTimeout %s is longer than interval %s, which Prometheus refuses" .scrapeTimeout .interval) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Labels that are there already: YAML takes no key twice, and selectors have to find what they are for. Takes the root.
*/}}
{{- define "scoring-service.validatelabels" -}}
{{- $bare := dict "Values" (omit .Values "commonLabels") "Chart" .Chart "Release" .Release -}}
{{- $own := include "scoring-service.modellabels" (dict "root" $bare "model" (first .Values.models)) | fromYaml -}}
{{- $own = set $own "scoring-service/headless" "" -}}
{{- range $key, $_ := .Values.commonLabels -}}
{{- if hasKey $own $key -}}
{{- fail (printf "commonLabels: %s is a label of the chart's own; use another key" $key) -}}
{{- end -}}
{{- end -}}
{{- $taken := merge (dict) $own (.Values.commonLabels | default dict) -}}
{{- range .Values.models -}}
{{- $model := mergeOverwrite (deepCopy $.Values.defaults) . -}}
{{- range $key, $_ := $model.podLabels -}}
{{- if hasKey $taken $key -}}
{{- fail (printf "models[%s]: podLabels: %s is a label of the chart's own, or among commonLabels; use another key" $model.name $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name := list "serviceMonitor" "prometheusRule" "dashboard" -}}
{{- range $key, $_ := (get $.Values.metrics $name).labels -}}
{{- if hasKey $taken $key -}}
{{- fail (printf "metrics.%s.labels: %s is a label of the chart's own, or among commonLabels; use another key" $name $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Names of models are names of objects, so no two may be equal, nor those of their Services. */}}
{{- define "scoring-service.unique" -}}
{{- $seen := dict -}}
{{- $services := dict -}}
{{- if hasKey .Values.defaults "name" -}}
{{- fail "defaults.name: a name belongs to one entry of models" -}}
{{- end -}}
{{- range .Values.models -}}
{{- if hasKey $seen .name -}}
{{- fail (printf "models: two are called %q" .name) -}}
{{- end -}}
{{- $_ := set $seen .name true -}}
{{- $model := mergeOverwrite (deepCopy $.Values.defaults) . -}}
{{- $scope := dict "root" $ "model" $model -}}
{{- $names := list (include "scoring-service.modelname" $scope) (include "scoring-service.headless" $scope) -}}
{{- if $model.liveWeights.enabled -}}{{- $names = append $names (include "scoring-service.replicas" $scope) -}}{{- end -}}
{{- range $name := $names -}}
{{- with get $services $name -}}
{{- fail (printf "models: %q and %q would both have a Service %s: give one of them another name" . $model.name $name) -}}
{{- end -}}
{{- $_ := set $services $name $model.name -}}
{{- end -}}
{{- end -}}
{{- end -}}
